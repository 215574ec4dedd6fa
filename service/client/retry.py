"""When a try is repeated, and after what wait.  Pure: no clock, no randomness, no network."""

from __future__ import annotations

import threading
from collections.abc import Set
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

from service.client.errors import BusyError, NoAnswerError, RankError


@dataclass(frozen=True)
class RetryPolicy:
    """Capped exponential backoff with full jitter, on top of what the service asks for."""

    retries: int = 2  # after the first try; 0: none
    first_wait_s: float = 0.05  # at most, before the first retry; it doubles with each
    longest_wait_s: float = 1.0  # what it grows to

    def wait_s(self, error: RankError, tries: int, left_s: float, draw: float, repeat_on: Set[int]) -> float | None:
        """Before the next try; None: there is none.

        tries: that were made, 1 or more.  left_s: until the call's deadline, which no wait reaches.  draw: 0 to 1.
        repeat_on: statuses after which the call is repeated without a Retry-After too.
        """
        asked_s = _asked_s(error, repeat_on)
        if asked_s is None or tries > self.retries:
            return None
        wait_s = asked_s + draw * min(self.longest_wait_s, self.first_wait_s * 2 ** (tries - 1))
        return wait_s if wait_s < left_s else None


def _asked_s(error: RankError, repeat_on: Set[int]) -> float | None:
    """What the service asks to wait; None: asking again is of no use, or may do harm."""
    if isinstance(error, NoAnswerError):
        return 0.0
    if isinstance(error, BusyError) and error.retry_after_s is not None:
        return error.retry_after_s
    return 0.0 if error.status in repeat_on else None


class RetryBudget:
    """A bucket of tokens: a call earns a part of one, a retry costs one.  For any number of threads.

    Of N calls at most `most + share * N` are repeated, so that callers of a service in trouble do not double its load.
    """

    def __init__(self, share: float = 0.1, most: float = 10.0) -> None:
        """The bucket is full at first, so that a program of few calls may repeat them."""
        self._share, self._most, self._tokens = share, most, most
        self._lock = threading.Lock()

    def earn(self) -> None:
        """A call begins."""
        with self._lock:
            self._tokens = min(self._most, self._tokens + self._share)

    def spend(self) -> bool:
        """Whether a retry may be made; it is paid for then."""
        with self._lock:
            if self._tokens < 1.0:
                return False
            self._tokens -= 1.0
            return True


def retry_after_s(text: str | None, now_s: float) -> float | None:
    """The header Retry-After: seconds, or a date (RFC 9110, 10.2.3).  None: there is none that can be read.

    now_s: since 1970.
    """
    if text is None:
        return None
    if text.strip().isdecimal():
        return float(text)
    try:
        when = parsedate_to_datetime(text)
        at_s = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()  # none: it was -0000
    except (ValueError, OverflowError):
        return None
    return max(0.0, at_s - now_s)
