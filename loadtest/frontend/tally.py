"""What became of the requests of one process, or of all when they are added up."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

RANK, EVENTS = "/rank", "/events"


@dataclass
class Tally:
    """Counts of requests that were due after the warm-up; wrong answers and problems count from the start."""

    ms: dict[str, list[float]] = field(default_factory=lambda: {RANK: [], EVENTS: []})  # good answers, since due
    errors: Counter[str] = field(default_factory=Counter)  # refused, failed or not answered, by route and reason
    wrong: Counter[str] = field(default_factory=Counter)  # what was wrong with answers
    degraded: Counter[str] = field(default_factory=Counter)  # words of good answers
    degraded_answers: int = 0
    fresh: int = 0  # answers that knew of a view that they had to know of
    asked: int = 0  # arrivals of the open loop
    late_ms: list[float] = field(default_factory=list)  # from when each was due until it was begun
    never_begun: int = 0  # arrivals that were due before the end
    cpu_shares: list[float] = field(default_factory=list)  # of one core, of each process that sends
    problems: list[str] = field(default_factory=list)  # why there was nothing to measure

    def add(self, other: dict[str, Any]) -> None:
        """What another process counted: its fields by name."""
        for route, ms in other["ms"].items():
            self.ms[route] += ms
        for name in ("errors", "wrong", "degraded"):
            getattr(self, name).update(other[name])
        for name in ("degraded_answers", "fresh", "asked", "late_ms", "never_begun", "cpu_shares", "problems"):
            setattr(self, name, getattr(self, name) + other[name])


class CpuShare:
    """How busy this process is."""

    def __init__(self) -> None:
        self._wall_s, self._cpu_s = time.perf_counter(), time.process_time()

    def value(self) -> float:
        """Of one core, since it was made."""
        return (time.process_time() - self._cpu_s) / max(1e-9, time.perf_counter() - self._wall_s)
