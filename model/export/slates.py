"""Scores of an engine over the samples of a PREPARED folder, and slates drawn from them.

Letters: B samples, U requests, T tiles, K candidates of a tile, Fc candidate columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from feature_store.matrices import UserInputs
from model.artifact.engine import Engine
from model.datasets.prepared import Prepared
from model.datasets.samples import gather

_BATCH_SAMPLES = 1024
_BATCH_SLATES = 8
_TILE = 8  # most requests of a log have few candidates


@dataclass(frozen=True)
class Reads:
    """What both towers read in one run."""

    users: UserInputs
    candidates: np.ndarray  # [T, K, Fc] int64
    tile_user: np.ndarray  # [T] int64


def predict(engine: Engine, data: Prepared, rows: np.ndarray) -> np.ndarray:
    """Uncalibrated probabilities [B, tasks] float32 of the samples `rows`, in their order."""
    parts = [np.empty((0, len(engine.tasks)), np.float32)]
    for start in range(0, len(rows), _BATCH_SAMPLES):
        batch = gather(data, rows[start : start + _BATCH_SAMPLES])
        tile, place, tile_user = tiles(batch.request, _TILE)
        candidates = np.zeros((len(tile_user), _TILE, batch.candidates.shape[1]), np.int64)  # [T, K, Fc]
        candidates[tile, place] = batch.candidates
        parts.append(engine.score(engine.user_state(batch.users), candidates, tile_user)[tile, place])
    return np.concatenate(parts)


def tiles(request: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tiles of at most `size` samples of one request.  request [B], ascending from 0

    -> the tile of each sample [B], its place there [B], the request of each tile [T]
    """
    position = np.arange(len(request)) - np.searchsorted(request, request)  # [B] within the request
    first = position % size == 0
    return np.cumsum(first) - 1, position % size, request[first]


def sample_users(data: Prepared, split: str, samples: int, seed: int) -> np.ndarray:
    """Rows of a split, in order: all of users drawn at random until there are `samples`, so that a user is whole."""
    rows = data.rows(split)
    users, user = np.unique(data.samples["user_row"][rows], return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(users))
    total = np.cumsum(np.bincount(user, minlength=len(users))[order])
    kept = np.zeros(len(users), bool)
    kept[order[: np.searchsorted(total, samples) + 1]] = True
    return rows[kept[user]]


def draw_slates(data: Prepared, split: str, slates: int, size: int, seed: int) -> Iterator[Reads]:
    """Requests of a split, each with candidates of `size` different authors of it, or of all where there are fewer."""
    rng = np.random.default_rng(seed)
    rows = data.rows(split)
    _, firsts = np.unique(data.samples["author_id"][rows], return_index=True)
    chosen = np.sort(rng.choice(rows, min(slates, len(rows)), replace=False))
    authors = gather(data, rows[np.sort(firsts)]).candidates  # [authors, Fc]
    for start in range(0, len(chosen), _BATCH_SLATES):
        users = gather(data, chosen[start : start + _BATCH_SLATES]).users
        drawn = [rng.choice(len(authors), min(size, len(authors)), replace=False) for _ in users.now]
        yield Reads(users, authors[np.stack(drawn)], np.arange(len(users.now)))
