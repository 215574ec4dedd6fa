"""Calibration: per task, a strictly increasing map of probabilities, straight between knots on the scale of logits.

On that scale a shift of the base rate, Platt's two parameters and the correction of negative sampling are lines, and
probabilities of 1e-6 stay as far apart, relatively, as those of 0.1.
Letters: T tasks.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

_LEAST, _GREATEST = 2.0**-150, 1 - 2.0**-25  # stand for 0 and 1: beyond every other float32 of [0, 1]
_EXP_OVERFLOW = 700.0


class CalibrationError(ValueError):
    """No strictly increasing maps of probabilities, or nothing that they could be fitted on."""


def logits(probabilities: np.ndarray) -> np.ndarray:
    """log(p / (1 - p)) in float64, finite and strictly increasing over all float32 of [0, 1]."""
    p = np.clip(probabilities.astype(np.float64), _LEAST, _GREATEST)
    found: np.ndarray = np.log(p) - np.log1p(-p)
    return found


def sigmoid(values: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-z) in float64, exact for small results."""
    found: np.ndarray = 1 / (1 + np.exp(-np.maximum(values, -_EXP_OVERFLOW)))
    return found


class Calibration:
    """Maps of the tasks in order; a task without one keeps its probabilities."""

    def __init__(self, tasks: tuple[str, ...], curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
        """curves: by task, knots x and values y, probabilities between 0 and 1 (exclusive), both strictly increasing.

        Beyond the outermost knots the outermost lines go on.  CalibrationError names the task of a curve that is none.
        """
        for task, (x, y) in curves.items():
            if task not in tasks:
                raise CalibrationError(f"calibration: {task!r} is no task of the model ({', '.join(tasks)})")
            _check_curve(task, x, y)
        self.tasks, self.curves = tasks, curves
        self.hash = hashlib.sha256(json.dumps(self._record(), sort_keys=True).encode()).hexdigest()[:16]
        self._columns = [tasks.index(task) for task in curves]
        self._lines = [_whole_line(_exact_logits(x), _exact_logits(y)) for x, y in curves.values()]

    @classmethod
    def load(cls, path: Path, tasks: tuple[str, ...]) -> Calibration:
        """Read what `save` wrote.  CalibrationError when the file is not that."""
        try:
            record = json.loads(path.read_text())["tasks"]
            curves = {task: (np.asarray(c["x"], float), np.asarray(c["y"], float)) for task, c in record.items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CalibrationError(f'{path}: must be {{"tasks": {{TASK: {{"x": [...], "y": [...]}}}}}}') from error
        return cls(tasks, curves)

    def save(self, path: Path) -> None:
        path.write_text(json.dumps({"tasks": self._record()}, indent=1) + "\n")

    def apply(self, probabilities: np.ndarray) -> np.ndarray:
        """[..., T] -> [..., T] of the same type, in [0, 1]; order within a task is kept."""
        if not self.curves:
            return probabilities
        z = logits(probabilities[..., self._columns])  # [..., tasks with a curve]
        for column, (x, y) in enumerate(self._lines):
            z[..., column] = np.interp(z[..., column], x, y)
        calibrated = probabilities.copy()
        calibrated[..., self._columns] = sigmoid(z)
        return calibrated

    def _record(self) -> dict[str, dict[str, list[float]]]:
        return {task: {"x": x.tolist(), "y": y.tolist()} for task, (x, y) in self.curves.items()}


def _check_curve(task: str, x: np.ndarray, y: np.ndarray) -> None:
    if x.ndim != 1 or x.shape != y.shape or len(x) < 2:
        raise CalibrationError(f"calibration.{task}: x and y must be two lists of the same length, two knots at least")
    for name, values in (("x", x), ("y", y)):
        if not ((values > 0) & (values < 1)).all():
            raise CalibrationError(f"calibration.{task}.{name}: knots must lie between 0 and 1, both exclusive")
        if not (np.diff(_exact_logits(values)) > 0).all():
            raise CalibrationError(f"calibration.{task}.{name}: must be strictly increasing")


def _exact_logits(knots: np.ndarray) -> np.ndarray:
    """Of knots, which may lie closer to 0 and 1 than any float32."""
    found: np.ndarray = np.log(knots) - np.log1p(-knots)
    return found


def _whole_line(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The knots and, where they do not reach the ends of `logits`, one more on each outermost line."""
    low, high = logits(np.array([0.0, 1.0]))
    slope = np.diff(y) / np.diff(x)
    if low < x[0]:
        x, y = np.append(low, x), np.append(y[0] + slope[0] * (low - x[0]), y)
    if high > x[-1]:
        x, y = np.append(x, high), np.append(y, y[-1] + slope[-1] * (high - x[-1]))
    return x, y
