"""Seconds of a ranking by stage."""

from __future__ import annotations

import time

from service.scoring.scorer import Score

_OWN_STAGES = ("parse", "formula", "serialise")  # in which nobody is waited for
_SHOWN_STAGES = ("store", "queue", "user_tower", "candidate_tower")


class Stopwatch:
    """Seconds by stage, one after the other."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self.seconds: dict[str, float] = {}

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
        self.seconds["hand_over"] -= sum(stages.values())
        self.seconds.update(stages)

    def own_s(self) -> float:
        """In which the event loop did nothing else."""
        return sum(self.seconds[stage] for stage in _OWN_STAGES)

    def timing_ms(self) -> dict[str, float]:
        shown = {stage: round(1000 * self.seconds[stage], 3) for stage in _SHOWN_STAGES}
        return {**shown, "total": round(1000 * (time.perf_counter() - self._start), 3)}
