"""User bootstrap of AUC, UAUC and GAUC: users are drawn with replacement, all models see the same draws.

Letters: N samples, U users, B draws, M groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from model.metrics import GroupAucs, group_aucs

FIGURES = ("auc", "uauc", "gauc", "gauc_page")
_BLOCK = 2_000_000  # draws x samples that are worked on at once


@dataclass(frozen=True)
class Draws:
    """How often each user is in each draw.  The first draw is the users themselves."""

    users: np.ndarray  # [U] distinct, sorted
    times: np.ndarray  # [B, U] int32

    def column(self, users: np.ndarray) -> np.ndarray:
        """The column of `times` of each of `users`, all of which were drawn from.  [N]"""
        columns: np.ndarray = np.searchsorted(self.users, users)
        return columns


@dataclass(frozen=True)
class Figures:
    """One model's figures in every draw.  Each [B]; nan where a draw leaves a figure undefined."""

    auc: np.ndarray
    uauc: np.ndarray
    gauc: np.ndarray
    gauc_page: np.ndarray


def draw_users(users: np.ndarray, draws: int, seed: int = 0) -> Draws:
    """`draws` draws of as many users as there are in `users` [N], the first of them the users themselves."""
    values = np.unique(users)
    rng = np.random.default_rng(seed)
    times = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), size=draws).astype(np.int32)
    times[0] = 1
    return Draws(values, times)


def bootstrap(
    scores: np.ndarray, labels: np.ndarray, users: np.ndarray, user_pages: np.ndarray, draws: Draws
) -> Figures:
    """scores, labels, users, user_pages (a group per user and page) [N]"""
    uauc, gauc = drawn_group_aucs(users, scores, labels, users, draws)
    _, gauc_page = drawn_group_aucs(user_pages, scores, labels, users, draws)
    return Figures(drawn_auc(scores, labels, users, draws), uauc, gauc, gauc_page)


def drawn_auc(scores: np.ndarray, labels: np.ndarray, users: np.ndarray, draws: Draws) -> np.ndarray:
    """AUC in every draw, exact, ties one half.  scores, labels, users [N] -> [B]

    A positive wins against the negatives below it: their number in a draw is a cumulative sum over sorted negatives.
    """
    order = np.argsort(scores, kind="stable")  # both classes sorted: memory is then read in order
    score, positive, column = scores[order], labels[order] == 1, draws.column(users[order])
    first, last = (np.searchsorted(score[~positive], score[positive], side) for side in ("left", "right"))
    step = max(1, _BLOCK // max(1, len(scores)))
    blocks = [draws.times[start : start + step] for start in range(0, len(draws.times), step)]
    return np.concatenate([_block_auc(times, column[~positive], column[positive], first, last) for times in blocks])


def _block_auc(
    times: np.ndarray, negatives: np.ndarray, positives: np.ndarray, first: np.ndarray, last: np.ndarray
) -> np.ndarray:
    """times [b, U]; negatives, positives: its columns, by score; first, last: negatives below, not above a positive"""
    cumulated = np.zeros((len(times), len(negatives) + 1), np.int32)
    np.cumsum(times.take(negatives, axis=1), axis=1, dtype=np.int32, out=cumulated[:, 1:])
    weight = times.take(positives, axis=1).astype(float)  # [b, positives]
    wins = np.einsum("bp,bp->b", weight, (cumulated.take(first, axis=1) + cumulated.take(last, axis=1)) / 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        share: np.ndarray = wins / (weight.sum(1) * cumulated[:, -1])
    return share


def drawn_group_aucs(
    groups: np.ndarray, scores: np.ndarray, labels: np.ndarray, users: np.ndarray, draws: Draws
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sample-weighted mean of the groups' AUCs; a group lies within a user, so it is drawn whole.

    groups, scores, labels, users [N] -> [B], [B]
    """
    found = group_aucs(groups, scores, labels)
    times = draws.times[:, draws.column(_users_of(found, groups, users))].astype(float)  # [B, M]
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = times @ found.auc / times.sum(1)
        weighted = times @ (found.auc * found.samples) / (times @ found.samples)
    return mean, weighted


def _users_of(found: GroupAucs, groups: np.ndarray, users: np.ndarray) -> np.ndarray:
    """The user of each kept group.  [M]"""
    values, first = np.unique(groups, return_index=True)
    owners: np.ndarray = users[first[np.searchsorted(values, found.groups)]]
    return owners


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """The value of the sample itself and the 95% interval of the draws."""
    low, high = np.nanpercentile(values[1:], [2.5, 97.5])
    return float(values[0]), float(low), float(high)
