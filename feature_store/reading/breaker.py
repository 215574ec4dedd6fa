"""When to stop asking a store that fails, and when to ask again: no clock, no waiting."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Literal

State = Literal["closed", "open", "half_open"]


class Breaker:
    """Closed: all may ask.  Open: nobody may, until `probe_interval_s` has passed.  Half open: one asks for all.

    It opens after `in_row` failures one after the other, or when at least `share` of the last `window` readings failed,
    counted from a failure on.  A probe that succeeds closes it; one that fails opens it again for the interval.
    Times are seconds of one monotonic clock.  on_change: told each new state.

    Example::

        attempt = breaker.admit(now)
        if attempt is not None:
            breaker.succeeded(attempt)  # or failed(attempt, now), or told_nothing(attempt, now): exactly one of them
    """

    def __init__(
        self,
        in_row: int,
        share: float,
        window: int,
        probe_interval_s: float,
        on_change: Callable[[State], None] = lambda state: None,
    ) -> None:
        self.state: State = "closed"
        self._in_row, self._share, self._window = in_row, share, window
        self._probe_interval_s = probe_interval_s
        self._on_change = on_change
        self._era = 0  # what an attempt of an earlier one says is no longer heard
        self._failed_in_row = 0
        self._recent: deque[bool] = deque(maxlen=window)  # whether each failed; empty when none did
        self._failed_recently = 0
        self._probe_at = 0.0

    def admit(self, now: float) -> int | None:
        """A number for what becomes of the attempt; None: do not ask."""
        if self.state == "closed":
            return self._era
        if self.state == "half_open" or now < self._probe_at:
            return None
        self._become("half_open")
        return self._era

    def succeeded(self, attempt: int) -> None:
        """The store answered."""
        if attempt != self._era:
            return
        if self.state == "closed":
            self._failed_in_row = 0
            if self._failed_recently:
                self._note(False)
            return
        self._era += 1
        self._failed_in_row = self._failed_recently = 0
        self._recent.clear()
        self._become("closed")

    def failed(self, attempt: int, now: float) -> None:
        """The store did not answer, though it had the time."""
        if attempt != self._era:
            return
        if self.state == "closed":
            self._failed_in_row += 1
            self._note(True)
            if not self._is_enough():
                return
        self._era += 1
        self._probe_at = now + self._probe_interval_s
        self._become("open")

    def told_nothing(self, attempt: int, now: float) -> None:
        """The attempt was given up for reasons that are not the store's; another one may take its place."""
        if attempt == self._era and self.state == "half_open":
            self._era += 1
            self._probe_at = now
            self._become("open")

    def _note(self, failed: bool) -> None:
        recent = self._recent
        if len(recent) == self._window:
            self._failed_recently -= recent[0]
        recent.append(failed)
        self._failed_recently += failed
        if not self._failed_recently:
            recent.clear()

    def _is_enough(self) -> bool:
        full = len(self._recent) == self._window
        return self._failed_in_row >= self._in_row or (full and self._failed_recently >= self._share * self._window)

    def _become(self, state: State) -> None:
        self.state = state
        self._on_change(state)
