"""User bootstrap of AUC, UAUC and GAUC: users are drawn with replacement, all models see the same draws.

Letters: N samples, B draws, M groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from model.metrics import group_aucs

FIGURES = ("auc", "uauc", "gauc", "gauc_page")


def user_draws(users: np.ndarray, draws: int, seed: int = 0) -> np.ndarray:
    """How often each sample counts in each draw: [B, N] int64.  The first draw is the sample itself."""
    values, row = np.unique(users, return_inverse=True)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), size=draws)
    counts[0] = 1
    weights: np.ndarray = counts[:, row]
    return weights


@dataclass(frozen=True)
class Figures:
    """One model's figures in every draw.  Each [B]; nan where a draw leaves a figure undefined."""

    auc: np.ndarray
    uauc: np.ndarray
    gauc: np.ndarray
    gauc_page: np.ndarray


def bootstrap(
    scores: np.ndarray, labels: np.ndarray, users: np.ndarray, user_pages: np.ndarray, weights: np.ndarray
) -> Figures:
    """scores, labels, users, user_pages (a group per user and page) [N]; weights [B, N] of `user_draws`"""
    uauc, gauc = _group_figures(users, scores, labels, weights)
    _, gauc_page = _group_figures(user_pages, scores, labels, weights)
    return Figures(_weighted_auc(scores, labels, weights), uauc, gauc, gauc_page)


def _weighted_auc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUC of weighted samples, ties one half.  [B]"""
    order = np.argsort(scores, kind="stable")
    _, tie = np.unique(scores[order], return_inverse=True)
    starts = np.flatnonzero(np.diff(tie, prepend=-1))
    positive = np.add.reduceat((weights * labels)[:, order], starts, axis=1).astype(float)  # [B, distinct scores]
    negative = np.add.reduceat((weights * (1 - labels))[:, order], starts, axis=1).astype(float)
    below = np.cumsum(negative, axis=1) - negative
    with np.errstate(invalid="ignore", divide="ignore"):
        wins: np.ndarray = (positive * (below + negative / 2)).sum(1) / (positive.sum(1) * negative.sum(1))
    return wins


def _group_figures(
    groups: np.ndarray, scores: np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sample-weighted mean of the groups' AUCs; a group lies within a user, so it is drawn whole.  [B], [B]"""
    found = group_aucs(groups, scores, labels)
    first = np.unique(groups, return_index=True)
    position = first[1][np.searchsorted(first[0], found.groups)]  # one sample of each kept group
    times = weights[:, position].astype(float)  # [B, M]
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = times @ found.auc / times.sum(1)
        weighted = times @ (found.auc * found.samples) / (times @ found.samples)
    return mean, weighted


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """The value of the sample itself and the 95% interval of the draws."""
    low, high = np.nanpercentile(values[1:], [2.5, 97.5])
    return float(values[0]), float(low), float(high)
