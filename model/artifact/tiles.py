"""Packing: candidates of several users in tiles of one size, so that one run of the candidate tower takes them all.

A tile is K candidates of one user.  The last tile of a user is filled up with copies of the user's first candidate,
whose results are cut.  Pure: no model, no clock.
Letters: U users, T tiles, K candidates of a tile, C candidates of a user, Fc candidate columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TILE_PLACES = 1.0  # what a tile costs besides its places, in places: 3-6 us against 5 us (CPU, docs/decisions.md)
_PARTS = np.arange(1, 9)  # into how many equal tiles a user's candidates are cut when the size is chosen


@dataclass(frozen=True)
class Tiles:
    """Where the candidates of each user lie among the T * K places."""

    size: int  # K
    counts: tuple[int, ...]  # C of each user
    starts: tuple[int, ...]  # first place of each user
    tiles: int  # T

    @property
    def places(self) -> int:
        return self.tiles * self.size

    def tile_user(self, rows: Sequence[int] | None = None) -> np.ndarray:
        """The user of each tile, or that user's entry of `rows`.  [T] int64"""
        users = np.arange(len(self.counts)) if rows is None else np.asarray(rows, np.int64)
        owned = [-(-count // self.size) for count in self.counts]
        return np.repeat(users, owned)

    def fill(self, candidates: Sequence[np.ndarray], out: np.ndarray) -> None:
        """Copy [C, Fc] of each user into out [T, K, Fc]."""
        places = out.reshape(-1, out.shape[-1])  # [T * K, Fc]
        for start, matrix in zip(self.starts, candidates, strict=True):
            end = start + len(matrix)
            places[start:end] = matrix
            if end % self.size:
                places[end : end + self.size - end % self.size] = matrix[0]

    def cut(self, results: np.ndarray) -> list[np.ndarray]:
        """[T, K, tasks] -> [C, tasks] of each user, views."""
        places = results.reshape(-1, results.shape[-1])
        return [places[start : start + count] for start, count in zip(self.starts, self.counts, strict=True)]


def pack(counts: Sequence[int], size: int) -> Tiles:
    """Tiles of `size` for users of so many candidates, in order."""
    starts, tiles = [], 0
    for count in counts:
        starts.append(tiles * size)
        tiles += -(-count // size)
    return Tiles(size, tuple(counts), tuple(starts), tiles)


def best_size(counts: Sequence[int], tile_places: float = TILE_PLACES) -> int:
    """The K with the least T * (K + tile_places) for one user or more; of equals the greatest.

    A smaller K costs less until one user needs a tile more, so only equal parts of some user's candidates are tried.
    Where all users have as many, a tile of each costs least.
    """
    if len(set(counts)) == 1:
        return max(counts[0], 1)
    users = np.array(counts, np.int64)[:, None]
    sizes = np.maximum(-(-users // _PARTS), 1).ravel()
    costs = (-(-users // sizes)).sum(0) * (sizes + tile_places)
    return int(sizes[costs == costs.min()].max())
