"""What a call of the client raises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class RankError(ValueError):
    """The service refused, failed or was not reached; one line.

    status: of the last answer, None when there was none.  problem: its RFC 9457 answer, if it gave one.
    request_id: under which the service's log has it.  tries: how often it was sent.  retry_after_s: what the service
    asked to wait, if it did.
    """

    def __init__(
        self,
        message: str,
        status: int | None = None,
        problem: Mapping[str, Any] | None = None,
        *,
        request_id: str | None = None,
        tries: int = 0,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.problem = status, dict(problem or {})
        self.request_id, self.tries, self.retry_after_s = request_id, tries, retry_after_s


class NoAnswerError(RankError):
    """No connection, or it broke before the answer was whole."""


class BusyError(RankError):
    """429 or 503: not now."""


class DeadlineError(RankError):
    """There was no time for the answer: 504 of the service (`status`), or the time of the call is over (None)."""


class HttpxMissingError(ImportError, ValueError):
    """The package httpx is not installed.  A ValueError too, which `farm` tells in one line."""
