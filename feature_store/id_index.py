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
        self._spilt: dict[int, int] = {}  # of ids whose bucket is full
        self._count = 0

    def find(self, ids: np.ndarray) -> np.ndarray:
        """The numbers of ids [N] int64, NONE where there is none.  [N] int32"""
        buckets = self._buckets(ids)
        same = self._ids[buckets] == ids[:, None]  # [N, _WIDE]
        numbers = self._numbers[buckets * _WIDE + same.argmax(1)]
        there = same.any(1)
        if there.all():
            return numbers
        numbers[~there] = [self._spilt.get(each, NONE) for each in ids[~there].tolist()]
        return numbers

    def put(self, each: int, number: int) -> None:
        """Also when it is there with another number."""
        if each not in self:
            self._count += 1
            if self._count > _MOST_LOAD * self._ids.size:
                self._grow()
        self._enter(each, number)

    def remove(self, each: int) -> int:
        """The number that it had, or NONE."""
        if each in self._spilt:
            self._count -= 1
            return self._spilt.pop(each)
        row = self._ids[self._bucket(each)]
        places = np.flatnonzero(row == each)
        if not len(places):
            return NONE
        self._count -= 1
        row[places[0]] = MISSING
        return int(self._numbers[self._bucket(each) * _WIDE + places[0]])

    def __contains__(self, each: int) -> bool:
        return each in self._spilt or each in self._ids[self._bucket(each)].tolist()

    def __len__(self) -> int:
        return self._count

    def _buckets(self, ids: np.ndarray) -> np.ndarray:
        return (ids.view(np.uint64) * _MIX >> self._shift).view(np.int64)

    def _bucket(self, each: int) -> int:
        return ((each * int(_MIX)) & 0xFFFFFFFFFFFFFFFF) >> int(self._shift)

    def _enter(self, each: int, number: int) -> None:
        bucket = self._bucket(each)
        row = self._ids[bucket].tolist()
        place = row.index(each) if each in row else row.index(MISSING) if MISSING in row else None
        if place is None or each in self._spilt:
            self._spilt[each] = number
        else:
            self._ids[bucket, place] = each
            self._numbers[bucket * _WIDE + place] = number

    def _resize(self, bits: int) -> None:
        """Empty, with 2^bits buckets."""
        self._shift = np.uint64(64 - bits)
        self._ids = np.full((1 << bits, _WIDE), MISSING)  # [B, _WIDE]
        self._numbers = np.full(_WIDE << bits, NONE, np.int32)  # [B * _WIDE]

    def _grow(self) -> None:
        """To twice as many buckets, without a step for each id: the event loop waits."""
        used = np.flatnonzero(self._ids.ravel() != MISSING)
        ids = np.concatenate([self._ids.ravel()[used], np.array(list(self._spilt), np.int64)])  # [N]
        numbers = np.concatenate([self._numbers[used], np.array(list(self._spilt.values()), np.int32)])  # [N]
        self._resize(64 - int(self._shift) + 1)
        order = np.argsort(self._buckets(ids), kind="stable")
        ids, numbers = ids[order], numbers[order]
        buckets = self._buckets(ids)
        places = np.arange(len(ids)) - np.searchsorted(buckets, buckets)  # how many of its bucket come before
        fits = places < _WIDE
        self._ids[buckets[fits], places[fits]] = ids[fits]
        self._numbers[buckets[fits] * _WIDE + places[fits]] = numbers[fits]
        self._spilt = dict(zip(ids[~fits].tolist(), numbers[~fits].tolist(), strict=True))
