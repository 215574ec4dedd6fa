"""The score formula: calibrated probabilities of an author -> the number that the ranking sorts by.

    score = sum over tasks of power * log1p(weight * p)        in float32

It lives outside the artifact, because it changes at run time, and is bound to the calibration it was made for.
Letters: C candidates, T tasks.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field


class Term(BaseModel):
    """One task's share of the score."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: float = Field(default=1.0, ge=0.0, le=1e6)
    power: float = Field(default=1.0, ge=-100.0, le=100.0)


_ONE = Term()


class Formula(BaseModel):
    """Weights and powers by task.  A task that is not named has weight and power 1.

    >>> import numpy as np
    >>> Formula().score(np.array([[0.5, 0.25]], np.float32), ("ctr", "ltr")).round(4)
    array([0.6286], dtype=float32)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str = "default"
    calibration: str | None = None  # hash of the calibration it was made for; None fits any
    tasks: dict[str, Term] = {}

    @classmethod
    def load(cls, path: str | Path) -> Formula:
        return cls.model_validate_json(Path(path).read_text())

    def check(self, tasks: tuple[str, ...], calibration_hash: str) -> None:
        """ValueError when the formula is not of this model."""
        for task in self.tasks:
            if task not in tasks:
                raise ValueError(f"formula.tasks.{task}: no task of the model; its tasks: {', '.join(tasks)}")
        if self.calibration not in (None, calibration_hash):
            raise ValueError(f"formula.calibration: made for {self.calibration}, the model has {calibration_hash}")

    def score(self, probabilities: np.ndarray, tasks: tuple[str, ...]) -> np.ndarray:
        """[C, T] float32 -> [C] float32"""
        terms = tuple((term.weight, term.power) for term in (self.tasks.get(task, _ONE) for task in tasks))
        weight, power = _columns(terms)
        scores: np.ndarray = np.log1p(probabilities * weight) @ power
        return scores


@lru_cache(maxsize=64)  # to make them takes as long as the logarithms of 200 candidates
def _columns(terms: tuple[tuple[float, float], ...]) -> np.ndarray:
    """Weights and powers.  [2, T] float32"""
    return np.array(terms, np.float32).T
