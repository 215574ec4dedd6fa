"""From ids to numbers, hundreds at once.

A dictionary answers one id after the other, and each answer waits for memory that is in no cache; here all ids of a
request wait together.

Letters: B buckets, N ids asked for.
"""

from __future__ import annotations

import numpy as np

from feature_store.schema import MISSING

NONE = -1  # the number of an id that is not there

_WIDE = 8  # ids of a bucket: one cache line
_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: its upper bits tell ids apart that lie in a row
_LEAST_BITS = 4  # of the number of buckets
_MOST_LOAD = 0.4  # of the places: at that about 1 % of the ids find their bucket full


class IdIndex:
    """Maps 64-bit ids, of which none is MISSING, to numbers from 0."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._resize(_LEAST_BITS)
        self._count = 0

    def find(self, ids: np.ndarray) -> np.ndarray:
        """The numbers of ids [N] int64, NONE where there is none.  [N] int32"""
        buckets = self._buckets(ids)
        same = self._ids[buckets] == ids[:, None]  # [N, _WIDE]
        numbers: np.ndarray = self._numbers[buckets * _WIDE + same.argmax(1)]
        there = same.any(1)
        if there.all():
            return numbers
        numbers[~there] = [self._spilt.get(each, NONE) for each in ids[~there].tolist()]
        return numbers

    def put(self, ids: np.ndarray, numbers: np.ndarray) -> None:
        """Ids [N], none twice, of which none may be there."""
        if self._count + len(ids) > _MOST_LOAD * self._ids.size:
            self._grow(self._count + len(ids))
        self._count += len(ids)
        self._enter(ids, numbers)

    def remove(self, ids: np.ndarray) -> np.ndarray:
        """The numbers that ids [N], none twice, had, NONE where there was none.  [N] int32"""
        numbers = self.find(ids)
        buckets = self._buckets(ids)
        rows, places = np.nonzero(self._ids[buckets] == ids[:, None])
        self._ids[buckets[rows], places] = MISSING
        if self._spilt:
            for each in ids.tolist():
                self._spilt.pop(each, None)
        self._count -= int(np.count_nonzero(numbers != NONE))
        return numbers

    def __contains__(self, each: int) -> bool:
        return bool(self.find(np.array([each]))[0] != NONE)

    def __len__(self) -> int:
        return self._count

    def _buckets(self, ids: np.ndarray) -> np.ndarray:
        buckets: np.ndarray = (ids.view(np.uint64) * _MIX >> self._shift).view(np.int64)
        return buckets

    def _enter(self, ids: np.ndarray, numbers: np.ndarray) -> None:
        """Into the free places of their buckets; those for whom there is none spill."""
        order = np.argsort(self._buckets(ids), kind="stable")
        ids, numbers = ids[order], numbers[order]
        buckets = self._buckets(ids)
        ranks = np.arange(len(ids)) - np.searchsorted(buckets, buckets)  # how many of its bucket come before
        taken = self._ids[buckets] != MISSING  # [N, _WIDE]
        fits = ranks < _WIDE - np.count_nonzero(taken, axis=1)
        free_first = np.argsort(taken[fits], axis=1, kind="stable")  # the places of each row
        places = free_first[np.arange(len(free_first)), ranks[fits]]
        self._ids[buckets[fits], places] = ids[fits]
        self._numbers[buckets[fits] * _WIDE + places] = numbers[fits]
        self._spilt.update(zip(ids[~fits].tolist(), numbers[~fits].tolist(), strict=True))

    def _resize(self, bits: int) -> None:
        """Empty, with 2^bits buckets."""
        self._shift = np.uint64(64 - bits)
        self._ids = np.full((1 << bits, _WIDE), MISSING)  # [B, _WIDE]
        self._numbers = np.full(_WIDE << bits, NONE, np.int32)  # [B * _WIDE]
        self._spilt: dict[int, int] = {}  # of ids whose bucket is full

    def _grow(self, count: int) -> None:
        """Room for so many and as many again."""
        used = np.flatnonzero(self._ids.ravel() != MISSING)
        ids = np.concatenate([self._ids.ravel()[used], np.array(list(self._spilt), np.int64)])  # [N]
        numbers = np.concatenate([self._numbers[used], np.array(list(self._spilt.values()), np.int32)])  # [N]
        self._resize(max(_LEAST_BITS, int(2 * count / (_MOST_LOAD * _WIDE)).bit_length()))
        self._enter(ids, numbers)
