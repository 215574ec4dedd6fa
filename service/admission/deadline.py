"""By when a request must be answered."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Deadline:
    """One for the whole request, over store, queue and inference.  On the clock of whoever asks, in seconds."""

    at: float

    @classmethod
    def after(cls, now: float, limit_ms: float) -> Deadline:
        return cls(now + limit_ms / 1000)

    def left_s(self, now: float) -> float:
        """Never below 0."""
        return max(0.0, self.at - now)

    def has_passed(self, now: float) -> bool:
        return now >= self.at


NEVER = Deadline(math.inf)
