"""W3C Trace Context: https://www.w3.org/TR/trace-context/."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

Headers = Iterable[tuple[bytes, bytes]]

TRACE_RESPONSE = b"traceresponse"
"""Header of answers, level 2 of the standard: which trace and span the request was."""

_PARENT, _STATE = b"traceparent", b"tracestate"
_PARENT_VALUE = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_NO_TRACE, _NO_SPAN = b"0" * 32, b"0" * 16
_MOST_STATE_BYTES = 512  # what has to be carried on; longer ones may be dropped


class SpanId(NamedTuple):
    """A span of a trace: the caller's, or ours.  A tuple, because each request makes some."""

    trace_id: str  # 32 hexadecimal digits
    span_id: str  # 16
    sampled: bool

    def header(self) -> bytes:
        """Value of `traceparent` or `traceresponse`."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}".encode()


def parent_of(headers: Headers) -> SpanId | None:
    """The caller's span.  None when no header names one, or several do, or it is malformed.  headers: in lower case"""
    found = None
    for name, value in headers:
        if name == _PARENT:
            if found is not None:
                return None
            found = value
    return None if found is None else read_parent(found)


def read_parent(value: bytes) -> SpanId | None:
    """None when it is malformed.  Of a later version, the part that this one knows."""
    match = _PARENT_VALUE.fullmatch(value)
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    malformed = version == b"ff" or (version == b"00" and more is not None)
    if malformed or trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    return SpanId(trace_id.decode(), span_id.decode(), bool(int(flags, 16) & 1))


def tracestate_of(headers: Headers) -> str:
    """What other tracing systems have to say of the trace, or nothing."""
    value = b",".join(value for name, value in headers if name == _STATE)
    return value.decode("latin-1") if len(value) <= _MOST_STATE_BYTES else ""
