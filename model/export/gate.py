"""The quality gate: what a cheaper precision loses against fp32 on the validation day, and when that is too much.

Few users have enough samples for an AUC of their own, and on a rare task one pair of neighbours that change places
moves UAUC by a tenth of a point.  So a loss is refused when it is beyond the limit and chance does not explain it.
Letters: B samples, U slates, K candidates of a slate, D draws of users.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from model.artifact.engine import Engine
from model.artifact.formula import Formula
from model.datasets.prepared import Prepared
from model.export.slates import Reads, draw_slates, predict, sample_users
from model.metrics import MEASURABLE_POSITIVES
from model.study.bootstrap import Draws, draw_users, drawn_auc, drawn_group_aucs

SPLIT = "valid"
TOP = 10
_DRAWS = 100  # of users; the standard error is then known to 7%
_CHANCE = 3.0  # standard errors: of 18 figures that lose nothing, one is beyond in 2% of the gates


class GateError(ValueError):
    """The converted model loses more than is allowed, or the sample cannot tell."""


@dataclass(frozen=True)
class Limits:
    """What is allowed, and how much is looked at."""

    max_loss_points: float = 0.05  # of AUC, UAUC and GAUC of a task; a point is 0.01
    min_top_overlap: float = 0.9  # mean share of fp32's top 10 that must stay
    samples: int = 50_000  # of the validation day, by whole users
    slates: int = 200
    slate_size: int = 200
    seed: int = 0


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Loss:
    """One figure of one task."""

    task: str
    metric: str  # AUC, UAUC, GAUC
    fp32: float
    converted: float
    error_points: float  # standard error of the loss, over draws of users

    @property
    def points(self) -> float:
        """What is lost, in points of 0.01; negative when the converted model is better."""
        return 100 * (self.fp32 - self.converted)

    def beyond(self, max_loss_points: float) -> bool:
        return not self.points <= max(max_loss_points, _CHANCE * self.error_points)  # nor a loss that is no number


@dataclass(frozen=True)
class TopOrder:
    """The first ten of slates by the default formula, converted against fp32; means over slates."""

    slates: int
    candidates: int  # of each
    overlap: float  # share of fp32's top 10 that stays
    same_set: float  # share of slates whose top 10 is the same, in any order
    same_order: float  # ... and in the same order
    score_kept: float  # sum of fp32's scores of the converted top 10 by that of its own


@dataclass(frozen=True)
class GateReport:
    precision: str
    samples: int
    losses: tuple[Loss, ...]
    too_few: tuple[str, ...]  # tasks with fewer than 50 positives or negatives in the sample
    top: TopOrder
    limits: Limits

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def summary(self) -> str:
        """One line.

        >>> top = TopOrder(200, 200, overlap=0.97, same_set=0.75, same_order=0.2, score_kept=0.9996)
        >>> loss = Loss("ctr", "AUC", fp32=0.80000, converted=0.79990, error_points=0.004)
        >>> GateReport("int8", 50_000, (loss,), (), top, Limits()).summary()
        'int8 against fp32 on 50,000 samples: AUC at most -0.010 points (ctr); 97.0% of the top 10 stay'
        """
        worst = max((loss for loss in self.losses if loss.metric == "AUC"), key=lambda loss: loss.points)
        return (
            f"{self.precision} against fp32 on {self.samples:,} samples: AUC at most {-worst.points:+.3f} points "
            f"({worst.task}); {self.top.overlap:.1%} of the top {TOP} stay"
        )


def check_quality(fp32: Engine, converted: Engine, data: Prepared, limits: Limits = DEFAULT_LIMITS) -> GateReport:
    """Compare both on the validation day.  Memory: the scores of the sample and one batch.

    GateError names the task, metric and figures that are beyond the limits, or why the sample cannot tell.
    """
    rows = sample_users(data, SPLIT, limits.samples, limits.seed)
    losses, too_few = _losses(data, rows, predict(fp32, data, rows), predict(converted, data, rows))
    if not losses:
        raise GateError(
            f"{data.path}: no task has {MEASURABLE_POSITIVES} positives and as many negatives among the {len(rows)} "
            "samples of the validation day; give --data more of them"
        )
    top = _top_order(fp32, converted, data, limits)
    report = GateReport(converted.manifest.precision, len(rows), losses, too_few, top, limits)
    _refuse(report)
    return report


def _refuse(report: GateReport) -> None:
    limits, precision, top = report.limits, report.precision, report.top
    refused = [loss for loss in report.losses if loss.beyond(limits.max_loss_points)]
    if refused:
        worst = max(refused, key=lambda loss: loss.points)
        raise GateError(
            f"{precision}: {worst.metric} of {worst.task} falls from {worst.fp32:.5f} to {worst.converted:.5f}, by "
            f"{worst.points:.3f} points (standard error {worst.error_points:.3f}); allowed are "
            f"{limits.max_loss_points:g}: keep fp32 or raise --max-loss"
        )
    if not top.overlap >= limits.min_top_overlap:
        raise GateError(
            f"{precision}: of the {TOP} best of {top.candidates} candidates only {top.overlap:.1%} stay, at least "
            f"{limits.min_top_overlap:.0%} must: keep fp32"
        )


def _losses(
    data: Prepared, rows: np.ndarray, fp32: np.ndarray, converted: np.ndarray
) -> tuple[tuple[Loss, ...], tuple[str, ...]]:
    """Of every task and metric that can be measured, and the names of other tasks.  fp32, converted [B, tasks]"""
    labels, users = data.samples["labels"][rows], data.samples["user_row"][rows]
    losses: list[Loss] = []
    too_few = []
    for index, task in enumerate(data.view.tasks):
        known = labels[:, index] >= 0
        label, user = labels[known, index], users[known]
        if min((label == 1).sum(), (label == 0).sum()) < MEASURABLE_POSITIVES:
            too_few.append(task)
            continue
        draws = draw_users(user, _DRAWS + 1)
        before, after = (_figures(scores[known, index], label, user, draws) for scores in (fp32, converted))
        measured = [metric for metric in before if not np.isnan(before[metric][0])]  # a user of both classes, or none
        losses += [_loss(task, metric, before[metric], after[metric]) for metric in measured]
    return tuple(losses), tuple(too_few)


def _figures(scores: np.ndarray, labels: np.ndarray, users: np.ndarray, draws: Draws) -> dict[str, np.ndarray]:
    """By metric, of the sample itself and of every draw: [D + 1]"""
    uauc, gauc = drawn_group_aucs(users, scores, labels, users, draws)
    return {"AUC": drawn_auc(scores, labels, users, draws), "UAUC": uauc, "GAUC": gauc}


def _loss(task: str, metric: str, fp32: np.ndarray, converted: np.ndarray) -> Loss:
    error = 100 * float(np.nanstd((fp32 - converted)[1:]))
    return Loss(task, metric, float(fp32[0]), float(converted[0]), error)


def _top_order(fp32: Engine, converted: Engine, data: Prepared, limits: Limits) -> TopOrder:
    parts = [
        compare_tops(_scores(fp32, reads), _scores(converted, reads))
        for reads in draw_slates(data, SPLIT, limits.slates, limits.slate_size, limits.seed)
    ]
    figures = np.concatenate(parts)  # [slates, 4]
    overlap, same_set, same_order, kept = (float(mean) for mean in figures.mean(axis=0))
    return TopOrder(len(figures), limits.slate_size, overlap, same_set, same_order, kept)


def _scores(engine: Engine, reads: Reads) -> np.ndarray:
    """The default formula over calibrated probabilities.  [U, K]"""
    probabilities = engine.score(engine.user_state(reads.users), reads.candidates, reads.tile_user)
    return Formula().score(engine.calibration.apply(probabilities), engine.tasks)


def compare_tops(fp32: np.ndarray, converted: np.ndarray) -> np.ndarray:
    """Overlap, same set, same order and score kept of the first ten of every slate.  [U, K] each -> [U, 4]"""
    best, found = (np.argsort(-scores, axis=1, kind="stable")[:, :TOP] for scores in (fp32, converted))  # [U, 10]
    stays = (best[:, :, None] == found[:, None]).any(axis=2)  # [U, 10]
    kept = [np.take_along_axis(fp32, places, axis=1).sum(axis=1) for places in (found, best)]  # [U] each
    same_order = (best == found).all(axis=1)
    return np.stack([stays.mean(axis=1), stays.all(axis=1), same_order, kept[0] / kept[1]], axis=1)
