"""AUC, UAUC and GAUC (Eq. 19), exact and vectorised.

Groups with one class only are skipped and the weights normalised over the kept groups; ties count one half.
Letters: N samples.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

MEASURABLE_POSITIVES = 50  # below it a figure says nothing


@dataclass(frozen=True)
class TaskMetrics:
    """Figures of one task; None where undefined."""

    auc: float | None
    uauc: float | None  # mean of the users' AUCs
    gauc: float | None  # weighted by the users' samples
    gauc_page: float | None  # over (user, page) instead of users: a ranking is made within one page
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
        positives=int(labels.sum()),
        samples=len(labels),
        users=len(by_user.auc),
    )
