"""Requests that took long, in the log."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from feature_store.logs import FIELDS
from service.stopwatch import Stopwatch

_log = logging.getLogger(__name__)


@dataclass
class RateLimit:
    """At most `per_s` in each second that begins with one."""

    per_s: int = 10
    _second: float = field(default=float("-inf"), init=False)  # when it began
    _admitted: int = field(default=0, init=False)  # in it
    _refused: int = field(default=0, init=False)  # since the last that was admitted

    def admit(self, now: float) -> int | None:
        """How many were refused since the last that was admitted; None: this one is refused.  now: seconds"""
        if now - self._second >= 1:
            self._second, self._admitted = now, 0
        if self._admitted >= self.per_s:
            self._refused += 1
            return None
        self._admitted += 1
        return self.left()

    def left(self) -> int:
        """How many were refused and are not told yet: now they are."""
        refused, self._refused = self._refused, 0
        return refused


class SlowRequests:
    """Those over `slow_s`, not more than the limit lets through."""

    def __init__(self, slow_s: float, limit: RateLimit | None = None) -> None:
        self.slow_s, self._limit = slow_s, limit or RateLimit()

    def tell(self, method: str, route: str, status: int, seconds: float, watch: Stopwatch | None, now: float) -> None:
        """Of a request that took `seconds`, up to `now` on the clock of time.perf_counter."""
        suppressed = self._limit.admit(now)
        if suppressed is None:
            return
        fields: dict[str, object] = {"method": method, "route": route, "status": status, "ms": _ms(seconds)}
        if watch is not None:
            fields["stages_ms"] = {stage: _ms(end - start) for stage, start, end in watch.stages(now)}
            fields |= watch.facts()
        if suppressed:
            fields["suppressed"] = suppressed
        _log.warning("slow request", extra={FIELDS: fields})

    def close(self) -> None:
        """Tell how many were not told."""
        if suppressed := self._limit.left():
            _log.warning("slow requests were not logged", extra={FIELDS: {"suppressed": suppressed}})


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 3)
