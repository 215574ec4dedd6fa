"""A batch of checked events, by kind: what a log carries and a store merges.

As bytes: a header, a CRC-32 of all the rest, the schema's name, then packed arrays in the order of the fields below.
Letters: E events of a kind.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from zlib import crc32

import numpy as np

from feature_store.records import require_dtype
from feature_store.schema import RecordSchema, widen

_HEADER = struct.Struct(
    "<2sBxHI4I"
)  # kind, format, bytes of the schema's name, schema version, video, live, authors, users
_CRC = struct.Struct("<I")
_BODY = _HEADER.size + _CRC.size
_KIND, _FORMAT = b"FE", 1
_COLUMNS = ("video_users", "video", "live_users", "live", "authors", "authors_at", "users", "users_at")
_RECORDS = {"video": "video", "live": "live", "authors": "author", "users": "user"}  # column: record of the schema

_INT64 = np.dtype("<i8")

Rows = np.ndarray | slice
_ALL = slice(None)


class EventBatchError(ValueError):
    """Bytes that are no batch of this schema, or not the ones that were written."""


@dataclass(frozen=True)
class EventBatch:
    """Views, author updates and user updates, each in any order.  Arrays may be read-only."""

    video_users: np.ndarray  # [E] int64
    video: np.ndarray  # [E] records "video"
    live_users: np.ndarray  # [E] int64
    live: np.ndarray  # [E] records "live"
    authors: np.ndarray  # [E] records "author"
    authors_at: np.ndarray  # [E] int64, ms since 1970, when each was said
    users: np.ndarray  # [E] records "user"
    users_at: np.ndarray  # [E] int64, ms since 1970

    def __len__(self) -> int:
        return len(self.video) + len(self.live) + len(self.authors) + len(self.users)

    def columns(self) -> tuple[np.ndarray, ...]:
        """The arrays, in the order of the fields."""
        return tuple(getattr(self, name) for name in _COLUMNS)

    @classmethod
    def empty(cls, schema: RecordSchema) -> EventBatch:
        """No events."""
        return cls(*(np.empty(0, dtype) for dtype in _dtypes(schema)))

    @classmethod
    def concat(cls, batches: Sequence[EventBatch]) -> EventBatch:
        """All events of one or more batches, in their order."""
        if len(batches) == 1:
            return batches[0]
        return cls(*map(_concatenated, zip(*(batch.columns() for batch in batches), strict=True)))

    def select(self, video: Rows = _ALL, live: Rows = _ALL, authors: Rows = _ALL, users: Rows = _ALL) -> EventBatch:
        """The events of these rows (a mask [E], indices or a slice) of each kind."""
        rows = (video, video, live, live, authors, authors, users, users)
        return EventBatch(*(column[some] for column, some in zip(self.columns(), rows, strict=True)))

    def without_user(self, user_id: int) -> EventBatch:
        """The batch without the views and attributes of one user."""
        return self.select(
            video=self.video_users != user_id,
            live=self.live_users != user_id,
            users=widen(self.users["user_id"]) != user_id,
        )

    def by_partition(self, partitions: int) -> dict[int, EventBatch]:
        """The events of each partition that has any: by user id, author updates by author id, both mixed to 64 bits."""
        ids = self.video_users, self.live_users, widen(self.authors["author_id"]), widen(self.users["user_id"])
        owners = [_partition(column, partitions) for column in ids]
        touched = sorted(set(chain.from_iterable(column.tolist() for column in owners)))
        if len(touched) == 1:
            return {touched[0]: self}
        return {partition: self.select(*(column == partition for column in owners)) for partition in touched}

    def to_bytes(self, schema: RecordSchema) -> bytes:
        """The batch as bytes.  ValueError when an array is not of the schema's records."""
        for column, record in _RECORDS.items():
            require_dtype(schema, record, getattr(self, column))
        name = schema.name.encode()
        counts = (len(getattr(self, column)) for column in _RECORDS)
        header = _HEADER.pack(_KIND, _FORMAT, len(name), schema.version, *counts)
        body = b"".join((name, *(column.tobytes() for column in self.columns())))
        return b"".join((header, _CRC.pack(crc32(body, crc32(header))), body))

    @classmethod
    def from_bytes(cls, schema: RecordSchema, value: bytes) -> EventBatch:
        """The batch of `to_bytes`, its arrays views of it.  EventBatchError says what is wrong."""
        counts, start = _unseal(schema, value)
        columns = []
        for dtype, count in zip(_dtypes(schema), counts, strict=True):
            if start + count * dtype.itemsize > len(value):
                raise EventBatchError("the length is not what the header says")
            columns.append(np.frombuffer(value, dtype, count, start))
            start += count * dtype.itemsize
        if start != len(value):
            raise EventBatchError("the length is not what the header says")
        return cls(*columns)


def _concatenated(columns: Sequence[np.ndarray]) -> np.ndarray:
    """By bytes: NumPy compares the fields of each array with those of the others."""
    return np.frombuffer(b"".join(column.tobytes() for column in columns if len(column)), columns[0].dtype)


def _dtypes(schema: RecordSchema) -> tuple[np.dtype, ...]:
    """Of the columns, in their order."""
    video, live, author, user = (schema.dtype(record) for record in _RECORDS.values())
    return _INT64, video, _INT64, live, author, _INT64, user, _INT64


def _unseal(schema: RecordSchema, value: bytes) -> tuple[tuple[int, ...], int]:
    """How many of each column there are, and where the first of them starts."""
    if len(value) < _BODY:
        raise EventBatchError(f"{len(value)} bytes are less than a header")
    kind, form, name_size, version, video, live, authors, users = _HEADER.unpack_from(value)
    (crc,) = _CRC.unpack_from(value, _HEADER.size)
    if (kind, form) != (_KIND, _FORMAT):
        raise EventBatchError(f"kind {kind!r} format {form}, expected {_KIND!r} format {_FORMAT}")
    if crc != crc32(memoryview(value)[_BODY:], crc32(value[: _HEADER.size])):
        raise EventBatchError("the checksum does not match")
    start = _BODY + name_size
    name = value[_BODY:start].decode(errors="replace")
    if (name, version) != (schema.name, schema.version):
        raise EventBatchError(f"written under schema {name} {version}, expected {schema.name} {schema.version}")
    return (video, video, live, live, authors, authors, users, users), start


def _partition(ids: np.ndarray, partitions: int) -> np.ndarray:
    """[E] 0..partitions-1.  The finaliser of SplitMix64 (Steele et al., 2014), so that ids in any pattern spread."""
    mixed = ids.astype(np.uint64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    partition: np.ndarray = mixed % np.uint64(partitions)
    return partition
