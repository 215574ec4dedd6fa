"""AUC, UAUC and GAUC (Eq. 19), exact and vectorised; how well probabilities are calibrated.

Groups with one class only are skipped and the weights normalised over the kept groups; ties count one half.
Letters: N samples, B bins.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

MEASURABLE_POSITIVES = 50  # below it a figure says nothing
RELIABILITY_BINS = 20
_LEAST_PROBABILITY = 1e-12  # inside logarithms, as in TorchRec


@dataclass(frozen=True)
class TaskMetrics:
    """Figures of one task; None where undefined."""

    auc: float | None
    uauc: float | None  # mean of the users' AUCs
    gauc: float | None  # weighted by the users' samples
    gauc_page: float | None  # over (user, page) instead of users: a ranking is made within one page
    predicted_observed: float | None  # sum of the probabilities by the number of positives
    ne: float | None  # normalised entropy: log loss by that of the base rate
    positives: int
    samples: int
    users: int  # with both classes: those that uauc and gauc are over

    @property
    def measurable(self) -> bool:
        return min(self.positives, self.samples - self.positives) >= MEASURABLE_POSITIVES

    def as_dict(self) -> dict[str, float | int | None]:
        return asdict(self)


@dataclass(frozen=True)
class GroupAucs:
    """AUC of every group that has both classes."""

    groups: np.ndarray  # [G] the groups' values
    auc: np.ndarray  # [G]
    samples: np.ndarray  # [G]

    def mean(self) -> float | None:
        """UAUC: every group alike."""
        return float(self.auc.mean()) if len(self.auc) else None

    def weighted(self) -> float | None:
        """GAUC: by samples, normalised over the groups that are here."""
        return float(np.average(self.auc, weights=self.samples)) if len(self.auc) else None


def group_aucs(groups: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> GroupAucs:
    """AUC within each group by rank sums.  groups, scores, labels [N]; labels 0 or 1."""
    if len(labels) == 0:
        return GroupAucs(np.empty(0, np.int64), np.empty(0), np.empty(0, np.int64))
    values, group = np.unique(groups, return_inverse=True)
    order = np.lexsort((scores, group))
    group, score, label = group[order], scores[order], labels[order].astype(np.float64)
    ranks = _mean_ranks(group, score)  # over all samples; a group's offset is taken off below
    size = np.bincount(group, minlength=len(values))
    positives = np.bincount(group, label, minlength=len(values))
    before = np.cumsum(size) - size
    rank_sum = np.bincount(group, ranks * label, minlength=len(values)) - before * positives
    kept = (positives > 0) & (positives < size)
    n, p, r = size[kept], positives[kept], rank_sum[kept]
    return GroupAucs(values[kept], (r - p * (p + 1) / 2) / (p * (n - p)), n)


def _mean_ranks(group: np.ndarray, score: np.ndarray) -> np.ndarray:
    """1-based ranks of sorted samples; ties share their mean.  [N]"""
    first = np.ones(len(score), bool)
    first[1:] = (group[1:] != group[:-1]) | (score[1:] != score[:-1])
    run = np.cumsum(first) - 1  # [N] index of the run of ties
    size = np.bincount(run)
    end = np.cumsum(size)
    ranks: np.ndarray = (end - (size - 1) / 2)[run]
    return ranks


def auc(scores: np.ndarray, labels: np.ndarray) -> float | None:
    """Area under the ROC curve; None with one class only."""
    return group_aucs(np.zeros(len(labels), np.int64), scores, labels).mean()


def task_metrics(scores: np.ndarray, labels: np.ndarray, users: np.ndarray, pages: np.ndarray) -> TaskMetrics:
    """All figures of one task.  scores, labels, users, pages [N]"""
    by_user = group_aucs(users, scores, labels)
    _, user_page = np.unique(np.stack([users, pages]), axis=1, return_inverse=True)
    return TaskMetrics(
        auc=auc(scores, labels),
        uauc=by_user.mean(),
        gauc=by_user.weighted(),
        gauc_page=group_aucs(user_page.ravel(), scores, labels).weighted(),
        predicted_observed=predicted_observed(scores, labels),
        ne=normalised_entropy(scores, labels),
        positives=int(labels.sum()),
        samples=len(labels),
        users=len(by_user.auc),
    )


def predicted_observed(scores: np.ndarray, labels: np.ndarray) -> float | None:
    """Sum of the probabilities by the number of positives (TorchRec metrics/calibration.py); None without positives.

    scores, labels [N]; labels 0 or 1
    """
    positives = labels.sum(dtype=np.float64)
    return float(scores.sum(dtype=np.float64) / positives) if positives > 0 else None


def normalised_entropy(scores: np.ndarray, labels: np.ndarray) -> float | None:
    """Log loss by the log loss of the base rate (TorchRec metrics/ne.py; He et al., ADKDD 2014); None with one class.

    scores, labels [N]; labels 0 or 1.  Below 1 the scores say more than the base rate.
    """
    positives, samples = int(labels.sum(dtype=np.int64)), len(labels)
    if not 0 < positives < samples:
        return None
    p = np.clip(scores.astype(np.float64), _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
    loss = -np.where(labels == 1, np.log(p), np.log1p(-p)).mean()
    rate = positives / samples
    return float(loss / -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate)))


@dataclass(frozen=True)
class Reliability:
    """Points of a reliability curve, by rising prediction."""

    predicted: np.ndarray  # [B] mean probability
    observed: np.ndarray  # [B] share of positives
    samples: np.ndarray  # [B]

    def error(self) -> float | None:
        """Expected calibration error (Naeini et al., AAAI 2015): mean distance from the diagonal, by samples."""
        distance = np.abs(self.predicted - self.observed)
        return float(np.average(distance, weights=self.samples)) if len(distance) else None


def reliability(scores: np.ndarray, labels: np.ndarray, bins: int = RELIABILITY_BINS) -> Reliability:
    """Predicted and observed in bins of equal counts; tied scores share a bin, so there may be fewer bins.

    scores, labels [N]; labels 0, 1, or -1 where not known, which are left out
    """
    known = labels >= 0
    order = np.argsort(scores[known], kind="stable")
    score, label = scores[known][order].astype(np.float64), labels[known][order].astype(np.float64)
    if len(score) == 0:
        return Reliability(np.empty(0), np.empty(0), np.empty(0, np.int64))
    edges = np.arange(bins) * len(score) // bins
    starts = np.unique(np.searchsorted(score, score[edges], side="left"))
    samples = np.diff(np.append(starts, len(score)))
    return Reliability(np.add.reduceat(score, starts) / samples, np.add.reduceat(label, starts) / samples, samples)


def calibration_figures(scores: np.ndarray, labels: np.ndarray) -> dict[str, float | int | None]:
    """Predicted by observed, normalised entropy, expected calibration error (20 bins), positives and samples of a task.

    scores, labels [N]; labels 0, 1, or -1 where not known, which are left out
    """
    known = labels >= 0
    scores, labels = scores[known], labels[known]
    return {
        "predicted_observed": predicted_observed(scores, labels),
        "ne": normalised_entropy(scores, labels),
        "ece": reliability(scores, labels).error(),
        "positives": int(labels.sum(dtype=np.int64)),
        "samples": len(labels),
    }
