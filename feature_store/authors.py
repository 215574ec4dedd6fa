"""Authors in memory, packed: hundreds are found and copied in microseconds, where as many small arrays would each miss
the core's caches.

Letters: A authors asked for, F fields of a record "author".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Self

import numpy as np

from feature_store.id_index import NONE, IdIndex
from feature_store.schema import MISSING

_UNKNOWN = 0  # the row of those who are not known


@dataclass(frozen=True, eq=False)
class Authors(Mapping[int, np.ndarray]):
    """Some authors: records "author" of the live rooms of each known one, newest room last."""

    dtype: np.dtype[np.void]  # of the records; without fields when nobody is known
    ids: np.ndarray  # [A] int64; an id may be there more than once
    newest: np.ndarray  # [A, F] int64, the newest room of each, MISSING where the author is not known
    known: np.ndarray  # [A] bool
    several: Mapping[int, np.ndarray]  # the rooms of those who have more than one

    @classmethod
    def of(cls, rooms: Mapping[int, np.ndarray]) -> Self:
        """Pack them.  An author without rooms is not known."""
        kept = {author: lives for author, lives in rooms.items() if len(lives)}
        if not kept:
            return cls(np.dtype([]), np.empty(0, np.int64), np.empty((0, 0), np.int64), np.empty(0, bool), {})
        newest = newest_rooms(list(kept.values()))
        several = {author: lives for author, lives in kept.items() if len(lives) > 1}
        known = np.ones(len(kept), bool)
        return cls(newest.dtype, np.array(list(kept), np.int64), columns(newest), known, several)

    def __getitem__(self, author: int) -> np.ndarray:
        if author in self.several:
            return self.several[author]
        return _narrow(self.newest[self._rows[author]], self.dtype)

    def __iter__(self) -> Iterator[int]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __or__(self, more: Mapping[int, np.ndarray]) -> Authors:
        """These and others, of whom those that are here too are as there."""
        other = more if isinstance(more, Authors) else Authors.of(more)
        if not self._fields or not other._fields:
            return other if other._fields else self
        stays = ~np.isin(self.ids, other.ids)
        several = {author: rooms for author, rooms in self.several.items() if author not in other}
        return Authors(
            other.dtype,
            np.concatenate([self.ids[stays], other.ids]),
            np.concatenate([self.newest[stays], other.newest]),
            np.concatenate([self.known[stays], other.known]),
            {**several, **other.several},
        )

    def lacking(self, live_ids: np.ndarray) -> list[tuple[int, int]]:
        """Authors and those of the live rooms asked of them that they do not have.  [A] int64, MISSING for any"""
        if not self._fields:
            return []
        newest = self.newest[:, self._fields.index("live_id")]
        other = (live_ids != MISSING) & (live_ids != newest)
        pairs = zip(self.ids[other].tolist(), live_ids[other].tolist(), strict=True)
        return [(author, live) for author, live in pairs if live not in self._older(author)]

    def take(self, author_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`newest` and `known` of authors [N] in this order."""
        if np.array_equal(author_ids, self.ids):  # most requests ask the store for what they then take
            return self.newest, self.known
        rows = np.array([self._rows.get(author, -1) for author in author_ids.tolist()], np.intp)
        known = rows >= 0
        newest = np.full((len(rows), len(self._fields)), MISSING)
        newest[known] = self.newest[rows[known]]
        return newest, known

    @property
    def _fields(self) -> tuple[str, ...]:
        return self.dtype.names or ()

    def _older(self, author: int) -> list[int]:
        lives: list[int] = self.several[author]["live_id"].tolist() if author in self.several else []
        return lives

    @cached_property
    def _rows(self) -> dict[int, int]:
        """The row of each known author."""
        return {author: row for row, author in enumerate(self.ids.tolist()) if self.known[row]}


class AuthorTable:
    """What a process remembers of authors, some of whom it knows to be unknown."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._dtype: np.dtype[np.void] = np.dtype([])
        self._newest = np.full((1, 0), MISSING)  # [rows, F]; row _UNKNOWN, then one of each known author
        self._rows = IdIndex()
        self._free: list[int] = []
        self._several: dict[int, np.ndarray] = {}
        self._has_several = np.zeros(1, bool)  # [rows]

    def add(self, author_ids: Sequence[int], rooms: Mapping[int, np.ndarray]) -> None:
        """Remember authors, those of whom there are no rooms as unknown."""
        known = {author: rooms[author] for author in author_ids if len(rooms.get(author, ()))}
        ids = np.unique(np.array(author_ids, np.int64))
        self._forget(ids)
        absent = ids[~np.isin(ids, np.array(list(known), np.int64))]
        self._rows.put(absent, np.full(len(absent), _UNKNOWN, np.int32))
        if not known:
            return
        newest = newest_rooms(list(known.values()))
        if self._dtype != newest.dtype:
            self._dtype, self._newest = newest.dtype, np.full((1, len(newest.dtype.names or ())), MISSING)
        rows = self._new_rows(len(known))
        self._newest[rows] = columns(newest)
        self._rows.put(np.array(list(known), np.int64), np.array(rows, np.int32))
        several = {author: lives for author, lives in known.items() if len(lives) > 1}
        self._has_several[rows] = np.isin(np.array(list(known)), list(several))
        self._several.update(several)

    def remove(self, author: int) -> bool:
        """Forget an author; whether it was there."""
        return bool(self._forget(np.array([author]))[0] != NONE)

    def _forget(self, author_ids: np.ndarray) -> np.ndarray:
        """The rows that authors [A] had."""
        rows = self._rows.remove(author_ids)
        self._free += rows[rows > _UNKNOWN].tolist()
        if self._several:
            for author in author_ids.tolist():
                self._several.pop(author, None)
        return rows

    def find(self, author_ids: np.ndarray) -> tuple[Authors, np.ndarray]:
        """What is remembered of authors [A], and which of them are not remembered [A] bool."""
        rows = self._rows.find(author_ids)
        absent = rows == NONE
        if absent.any():
            author_ids, rows = author_ids[~absent], rows[~absent]
        several = {each: self._several[each] for each in author_ids[self._has_several[rows]].tolist()}
        return Authors(self._dtype, author_ids, self._newest[rows], rows != _UNKNOWN, several), absent

    def __contains__(self, author: int) -> bool:
        return author in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def _new_rows(self, count: int) -> list[int]:
        """Rows that nobody has."""
        missing = count - len(self._free)
        if missing > 0:
            have, grow = len(self._newest), max(missing, len(self._newest))
            self._newest = np.concatenate([self._newest, np.full((grow, self._newest.shape[1]), MISSING)])
            self._has_several = np.concatenate([self._has_several, np.zeros(grow, bool)])
            self._free += range(have, have + grow)
        rows = self._free[-count:]
        del self._free[-count:]
        return rows


def newest_rooms(rooms: Sequence[np.ndarray]) -> np.ndarray:
    """The last record of each author [A], all of one dtype."""
    # np.concatenate takes 3 us for each structured array
    return np.frombuffer(b"".join([lives[-1:].tobytes() for lives in rooms]), rooms[0].dtype)


def columns(records: np.ndarray, names: tuple[str, ...] | None = None) -> np.ndarray:
    """Fields of records [E] as int64 [E, F], what is not known as MISSING.  names: all fields when None."""
    names = records.dtype.names if names is None else names
    assert names is not None, "records have fields"
    wide = np.empty((len(records), len(names)), np.int64)
    for index, name in enumerate(names):
        wide[:, index] = records[name]
    wide[wide == _least(records.dtype, names)] = MISSING
    return wide


def single(record: np.void, names: tuple[str, ...]) -> list[int]:
    """As `columns`, of one record: [F], without an array for each field."""
    least = _least(record.dtype, names).tolist()
    values = [record[name].item() for name in names]
    return [MISSING if value == none else value for value, none in zip(values, least, strict=True)]


def _narrow(row: np.ndarray, dtype: np.dtype[np.void]) -> np.ndarray:
    """The one record [1] of which `row` [F] are the columns."""
    assert dtype.names is not None, "records have fields"
    values = np.where(row == MISSING, _least(dtype, dtype.names), row)
    return np.array([tuple(values.tolist())], dtype)


@lru_cache(maxsize=64)
def _least(dtype: np.dtype[np.void], names: tuple[str, ...]) -> np.ndarray:
    """The value of each field that stands for MISSING where it is stored.  [F] int64"""
    return np.array([np.iinfo(dtype[name]).min for name in names], np.int64)
