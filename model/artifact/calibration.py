"""Calibration: per task, a monotone piecewise linear map of probabilities.

Letters: T tasks.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np


class CalibrationError(ValueError):
    """The file does not hold monotone maps of probabilities."""


class Calibration:
    """Maps of the tasks in order; a task without one keeps its probabilities."""

    def __init__(self, tasks: tuple[str, ...], curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
        """curves: by task, knots x ascending and values y, not descending, both in [0, 1]."""
        for task, (x, y) in curves.items():
            if task not in tasks:
                raise CalibrationError(f"calibration: {task!r} is no task of the model ({', '.join(tasks)})")
            if len(x) < 2 or len(x) != len(y) or not ((np.diff(x) > 0).all() and (np.diff(y) >= 0).all()):
                raise CalibrationError(f"calibration.{task}: x must ascend, y must not descend, two knots at least")
            if min(x[0], y[0]) < 0 or max(x[-1], y[-1]) > 1:
                raise CalibrationError(f"calibration.{task}: knots must lie in [0, 1]")
        self.tasks, self.curves = tasks, curves
        self.hash = hashlib.sha256(json.dumps(self._record(), sort_keys=True).encode()).hexdigest()[:16]

    @classmethod
    def load(cls, path: Path, tasks: tuple[str, ...]) -> Calibration:
        record = json.loads(path.read_text())["tasks"]
        return cls(tasks, {task: (np.asarray(c["x"], float), np.asarray(c["y"], float)) for task, c in record.items()})

    def save(self, path: Path) -> None:
        path.write_text(json.dumps({"tasks": self._record()}, indent=1) + "\n")

    def apply(self, probabilities: np.ndarray) -> np.ndarray:
        """[..., T] float32 -> [..., T] float32"""
        if not self.curves:
            return probabilities
        calibrated = probabilities.copy()
        for task, (x, y) in self.curves.items():
            index = self.tasks.index(task)
            calibrated[..., index] = np.interp(probabilities[..., index], x, y)
        return calibrated

    def _record(self) -> dict[str, dict[str, list[float]]]:
        return {task: {"x": x.tolist(), "y": y.tolist()} for task, (x, y) in self.curves.items()}
