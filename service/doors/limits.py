"""What a connection may cost before there is a request."""

from __future__ import annotations

import resource
from dataclasses import dataclass

_OWN_DESCRIPTORS = 128  # of a worker, for all but its connections: log, store, pipes, model


@dataclass(frozen=True)
class Limits:
    """Of the connections of one worker."""

    connections: int = 2_048
    idle_s: float = 65.0  # between requests, and before the first
    head_s: float = 5.0  # from the first byte of a request to the end of its headers
    body_s: float = 10.0  # from there to the end of its body
    answer_s: float = 30.0  # that a client may leave an answer unread
    leave_s: float = 1.0  # that a client has to read why it is sent away
    patience_s: float = 0.25  # before a new connection may take the place of one that is stuck in a request
    target_bytes: int = 4_096  # path and query
    head_bytes: int = 16_384  # names and values of all headers
    headers: int = 64


def affordable_connections(asked: int) -> int:
    """At most `asked`, and no more than the file descriptors of this process allow."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return asked
    return max(1, min(asked, soft - _OWN_DESCRIPTORS))
