"""What is looked at now and then, because to look at all of it would cost too much."""

from __future__ import annotations

import time
from collections.abc import Callable


class Throttle:
    """Lets at most `per_second` of what comes through: what comes first in each of as many equal parts of a second.

    Example::

        if throttle.is_due():
            observe(what_is_dear())
    """

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._every_s, self._clock, self._next = 1 / per_second, clock, float("-inf")

    def is_due(self) -> bool:
        """Whether this one is looked at; then the next is not before its time."""
        now = self._clock()
        if now < self._next:
            return False
        self._next = now + self._every_s
        return True
