"""Seconds of a ranking by stage, and what else is worth telling of it."""

from __future__ import annotations

import time
from collections.abc import Sequence

from service.metrics import STAGES
from service.scoring.scorer import Score

_OWN_STAGES = ("parse", "formula", "serialise")  # in which nobody is waited for
_SHOWN_STAGES = ("store", "queue", "user_tower", "candidate_tower")
_ENTERED = ("parse", "store", "queue", "formula", "serialise")  # what a ranking is in, one after the other


class Stopwatch:
    """Seconds by stage, one after the other."""

    def __init__(self) -> None:
        self.started = self._last = time.perf_counter()
        self.seconds: dict[str, float] = {}
        self.candidates: int | None = None  # None, here and below: a ranking that failed did not come so far
        self.degraded: Sequence[str] | None = None
        self.model_version = self.arm = ""
        self.state_kept: bool | None = None

    def lap(self, stage: str) -> None:
        """The time since the last lap was `stage`."""
        now = time.perf_counter()
        self.seconds[stage], self._last = now - self._last, now

    def lap_scored(self, score: Score) -> None:
        """The time since the last lap was the queue's, the towers', and that of the way to them and back."""
        self.lap("hand_over")
        stages = {
            "queue": score.queue_s,
            "user_tower": score.user_tower_s,
            "candidate_tower": score.candidate_tower_s,
        }
        self.seconds["hand_over"] = max(0.0, self.seconds["hand_over"] - sum(stages.values()))
        self.seconds.update(stages)
        self.state_kept = score.kept

    def own_s(self) -> float:
        """In which the event loop did nothing else."""
        return sum(self.seconds[stage] for stage in _OWN_STAGES)

    def timing_ms(self) -> dict[str, float]:
        shown = {stage: round(1000 * self.seconds[stage], 3) for stage in _SHOWN_STAGES}
        return {**shown, "total": round(1000 * (time.perf_counter() - self.started), 3)}

    def stages(self, until: float) -> list[tuple[str, float, float]]:
        """Each stage with its start and end, of time.perf_counter, one after the other.

        until: when the request ended; a ranking that failed was so long in its last stage.
        """
        found, start = [], self.started
        for stage in STAGES:
            if stage in self.seconds:
                end = start + max(0.0, self.seconds[stage])
                found.append((stage, start, end))
                start = end
        failed = next((stage for stage in _ENTERED if stage not in self.seconds), None)
        return found if failed is None else [*found, (failed, start, max(start, until))]

    def facts(self) -> dict[str, str | int | bool | Sequence[str]]:
        """What is known, without anything that tells who asked or for whom."""
        told = {
            "candidates": self.candidates,
            "degraded": self.degraded,
            "model_version": self.model_version or None,
            "arm": self.arm or None,
            "state_kept": self.state_kept,
        }
        return {name: value for name, value in told.items() if value is not None}
