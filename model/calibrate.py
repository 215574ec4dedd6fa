"""Fitting the calibration on the validation day: a line on the scale of logits, bent where the data say so.

1. Line (Platt, 1999): logit p' = slope * logit p + shift, by maximum a posteriori.
2. Bends: samples in bins of equal positives; a bin's residual from the line is shrunk by what chance alone explains
   (DerSimonian & Laird, 1986); isotonic regression plus a small slope goes through the bins.
3. Shift: predicted equals observed on the validation day.
Letters: N samples, T tasks, B bins, k columns.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from model.artifact.calibration import Calibration, CalibrationError, logits, sigmoid
from model.artifact.manifest import CALIBRATION

LEAST_POSITIVES = 5  # with fewer positives (or negatives) a task keeps its probabilities
POSITIVES_PER_BIN = 100
MOST_BINS = 30
LEAST_SLOPE = 0.1  # on the scale of logits: of the line, and of the bends relative to the line
_PRIOR_PRECISION = 4.0  # of slope - 1 and of the shift: a standard deviation of 0.5, worth about four positives
_SATURATED = (-100.0, 16.0)  # logits beyond are in one bin

Knots = tuple[np.ndarray, np.ndarray]  # logits before and after


def fit_calibration(
    tasks: tuple[str, ...], scores: np.ndarray, labels: np.ndarray, negative_rate: float = 1.0
) -> Calibration:
    """The calibration of probabilities `scores` [N, T] that makes them agree with `labels` [N, T] (1, 0, -1 unknown).

    negative_rate: share of samples without a positive label that the model was trained on, when the loss did not weight
    them by its inverse; the labels here must be of all samples.  CalibrationError when the arrays are not of that form.
    """
    _check(tasks, scores, labels, negative_rate)
    sampling = float(np.log(negative_rate))
    curves = {}
    for index, task in enumerate(tasks):
        known = labels[:, index] >= 0
        z, y = logits(scores[known, index]) + sampling, labels[known, index].astype(np.float64)
        if min(y.sum(), len(y) - y.sum()) >= LEAST_POSITIVES:
            before, after = _fit(z, y)
            curves[task] = sigmoid(before - sampling), sigmoid(after)
        elif negative_rate < 1:
            curves[task] = _sampling_curve(negative_rate)
    return Calibration(tasks, curves)


def load_calibration(run_folder: str | Path, tasks: tuple[str, ...]) -> Calibration:
    """The calibration of a run; the identity when the run has none.  CalibrationError when the file is spoilt."""
    path = Path(run_folder) / CALIBRATION
    return Calibration.load(path, tasks) if path.is_file() else Calibration(tasks, {})


def undo_negative_sampling(probabilities: np.ndarray, negative_rate: float) -> np.ndarray:
    """p = p' / (p' + (1 - p') / r) of a model that saw all positives and a share r of the negatives, any shape.

    He et al., Practical Lessons from Predicting Clicks on Ads at Facebook (ADKDD 2014), section 6.3.  It holds for a
    task all of whose negatives were thinned.  Samples are thinned when they have no positive label at all: for a task
    rarer than "any label" the correction is too strong, and the fit takes out what is too much.
    """
    corrected: np.ndarray = probabilities / (probabilities + (1 - probabilities) / negative_rate)
    return corrected


def sampling_calibration(tasks: tuple[str, ...], negative_rate: float) -> Calibration:
    """`undo_negative_sampling` as curves of all tasks: on the scale of logits it is a shift by log r."""
    return Calibration(tasks, dict.fromkeys(tasks, _sampling_curve(negative_rate)) if negative_rate < 1 else {})


def _sampling_curve(negative_rate: float) -> tuple[np.ndarray, np.ndarray]:
    before = np.array([-1.0, 1.0])
    return sigmoid(before), sigmoid(before + np.log(negative_rate))


def _check(tasks: tuple[str, ...], scores: np.ndarray, labels: np.ndarray, negative_rate: float) -> None:
    if scores.shape != labels.shape or scores.ndim != 2 or scores.shape[1] != len(tasks):
        raise CalibrationError(
            f"calibration: scores {scores.shape} and labels {labels.shape} must be [samples, {len(tasks)} tasks]"
        )
    if not 0 < negative_rate <= 1:
        raise CalibrationError(f"calibration: negative_rate must be above 0 and at most 1, is {negative_rate}")
    for name, valid in (("score", (scores >= 0) & (scores <= 1)), ("label", np.isin(labels, (-1, 0, 1)))):
        if not valid.all():
            row, column = np.argwhere(~valid)[0]
            found = (scores if name == "score" else labels)[row, column]
            allowed = "a probability" if name == "score" else "1, 0 or -1"
            raise CalibrationError(f"calibration.{tasks[column]}: {name} of row {row} is {found}, must be {allowed}")


def _fit(z: np.ndarray, y: np.ndarray) -> Knots:
    """z, y [N] logits and labels"""
    weight = sigmoid(z) * sigmoid(-z)
    centre = float(np.average(z, weights=weight))
    slope, shift = _line(z - centre, y, centre)
    straight = shift + slope * (z - centre)
    bends = _bends(straight, y)
    if bends is None:
        steps = np.array([-1.0, 1.0])
        return centre + steps / slope, shift + steps
    x, values = (_with_ends(knots) for knots in bends)
    values = values + _logistic(np.ones((len(z), 1)), _piecewise(straight, x, values), y, 0.0)[0]
    return centre + (x - shift) / slope, values


def _line(centred: np.ndarray, y: np.ndarray, centre: float) -> tuple[float, float]:
    """Slope and value at the centre of the line through logits."""
    both = np.stack([centred, np.ones_like(centred)], axis=1)  # [N, 2]
    slope, shift = np.array([1.0, centre]) + _logistic(both, centred + centre, y, _PRIOR_PRECISION)
    if slope < LEAST_SLOPE:  # the scores do not rank this day; order is kept all the same
        slope = LEAST_SLOPE
        shift = centre + _logistic(both[:, 1:], slope * centred + centre, y, _PRIOR_PRECISION)[0]
    return float(slope), float(shift)


def _logistic(columns: np.ndarray, offset: np.ndarray, y: np.ndarray, precision: float) -> np.ndarray:
    """Weights [k] of logit = offset + columns w under the prior N(0, 1 / precision); Newton, halving what overshoots.

    columns [N, k]; offset, y [N]
    """

    def loss(w: np.ndarray) -> float:
        z = offset + columns @ w
        return float(np.logaddexp(0, z).sum() - y @ z + precision / 2 * w @ w)

    w = np.zeros(columns.shape[1])
    current = loss(w)
    for _ in range(100):
        p = sigmoid(offset + columns @ w)
        hessian = (columns * (p * (1 - p))[:, None]).T @ columns + precision * np.eye(len(w))
        step = np.linalg.solve(hessian, columns.T @ (p - y) + precision * w)
        while (reached := loss(w - step)) > current + 1e-12 * abs(current):
            step /= 2
        w, current = w - step, reached
        if np.abs(step).max() < 1e-9:
            break
    return w


def _bends(straight: np.ndarray, y: np.ndarray) -> Knots | None:
    """Knots [B] where the samples leave the line by more than chance; None when they do not.  straight, y [N]"""
    order = np.argsort(straight, kind="stable")
    z, y = np.clip(straight[order], *_SATURATED), y[order]
    starts = _bins(z, y)
    p = sigmoid(z)
    count = np.diff(np.append(starts, len(z)))
    predicted, variance, positives = (np.add.reduceat(v, starts) for v in (p, p * (1 - p), y))  # [B] each
    x = logits(predicted / count)
    residual = logits((positives + 0.5) / (count + 1)) - x
    spread = _spread(residual, variance)
    if spread == 0:
        return None
    target = x + residual * spread * variance / (spread * variance + 1)
    level: np.ndarray = _isotonic(target - LEAST_SLOPE * x, variance)
    return x, level + LEAST_SLOPE * x


def _bins(z: np.ndarray, y: np.ndarray) -> np.ndarray:
    """First sample of each bin: equal numbers of the rarer class, tied scores together.  z sorted, y [N] -> [B]"""
    rarer = y if y.mean() < 0.5 else 1 - y
    total = rarer.sum()
    bins = int(min(MOST_BINS, total // POSITIVES_PER_BIN))
    edges = np.searchsorted(np.cumsum(rarer), total * np.arange(1, bins) / max(bins, 1))
    return np.unique(np.append(0, np.searchsorted(z, z[edges], side="left")))


def _spread(residual: np.ndarray, precision: np.ndarray) -> float:
    """Variance of the residuals [B] beyond that of chance, whose inverse is `precision`; 0 when chance explains them.

    DerSimonian & Laird (1986) about a known mean of 0, less the two degrees of freedom of the line.
    """
    excess = precision @ residual**2 - (len(residual) - 2)
    scale = precision.sum() - (precision**2).sum() / precision.sum()
    return float(excess / scale) if excess > 0 and len(residual) > 2 else 0.0


def _isotonic(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted isotonic regression by pooling adjacent violators.  [B]"""
    pools: list[tuple[float, float, int]] = []  # mean, weight, bins
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        pool = (value, weight, 1)
        while pools and pools[-1][0] >= pool[0]:
            mean, mass, size = pools.pop()
            total = mass + pool[1]
            pool = ((mean * mass + pool[0] * pool[1]) / total, total, size + pool[2])
        pools.append(pool)
    return np.repeat([mean for mean, _, _ in pools], [size for _, _, size in pools])


def _with_ends(knots: np.ndarray) -> np.ndarray:
    """Knots with one more at each end, one logit away: beyond the bins the line goes on, parallel."""
    return np.concatenate([[knots[0] - 1], knots, [knots[-1] + 1]])


def _piecewise(z: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The curve through knots whose outermost lines have slope 1."""
    after: np.ndarray = np.interp(z, x, y) + np.minimum(z - x[0], 0) + np.maximum(z - x[-1], 0)
    return after
