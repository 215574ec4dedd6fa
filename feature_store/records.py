"""The codec: columns of integers to packed records, and what a store keeps of one user or one author.

A stamped record is the time at which it was said [int64, ms since 1970], then the record.  A sealed value is a header,
a CRC-32 of all the rest, then packed records, contiguous: a user is attributes (0 or 1 stamped record), video history,
live history; an author is its live rooms, stamped, newest last.
Letters: U users, A authors, E events.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Literal, TypeAlias
from zlib import crc32

import numpy as np

from feature_store.schema import MISSING, Domain, RecordSchema, StoredField

_HEADER = struct.Struct("<2sBBIIIQ")  # kind, format, attributes, schema version, first count, second count, version
_CRC = struct.Struct("<I")
_STAMP = struct.Struct("<q")
_BODY = _HEADER.size + _CRC.size
_FORMAT = 2
_UNSTAMPED = 1  # the format before it: without the times, which are taken as 0
_USER, _AUTHOR = b"FU", b"FA"

TIME_LIMIT = 2**52 - 1
"""Greatest distance of a time from 1970 [ms]: the sum of two is exact in a double, the only number of Lua, in which a
Redis server merges."""

Said = Literal["author", "user"]
"""The kinds of record of which the one said last stays, so they are stamped."""

Pieces: TypeAlias = tuple[np.ndarray, np.ndarray]
"""Records [E] of owners in turn, and where those of each start: offsets [owners + 1]."""

_REQUIRED = {
    "video": ("view_id", "event_time"),
    "live": ("view_id", "event_time"),
    "author": ("author_id",),
    "user": ("user_id",),
}


class CorruptRecord(ValueError):  # noqa: N818 - it is what was found
    """A stored value that is not what was written, or is of another schema version."""


@dataclass(frozen=True)
class UserRecord:
    """One user as stored.  Arrays may be read-only."""

    attributes: np.void | None  # one record "user"; None when only events are known
    video: np.ndarray  # records "video", in history order (merge.py)
    live: np.ndarray  # records "live"
    version: int  # grows at each write of the user, so (user, version) names this content
    attributes_at: int = 0  # ms since 1970, when the attributes were said

    def history(self, domain: Domain) -> np.ndarray:
        """The events of one domain."""
        return self.video if domain == "video" else self.live


@dataclass(frozen=True, slots=True)
class PackedUser:
    """One user as stored: bytes of records."""

    attributes: bytes  # 0 or 1 stamped record "user"
    video: bytes
    live: bytes
    version: int


@dataclass(frozen=True)
class UserBatch:
    """Many users, flat: the events of user u are rows offsets[u] .. offsets[u+1]-1 of its domain's array."""

    user_ids: np.ndarray  # [U] int64, each once
    attributes: np.ndarray | None  # [U] records "user"
    video: np.ndarray  # [E] records "video"
    video_offsets: np.ndarray  # [U + 1]
    live: np.ndarray  # [E] records "live"
    live_offsets: np.ndarray  # [U + 1]

    def part(self, start: int, stop: int) -> UserBatch:
        """Users start..stop-1, over the same events: their offsets still count from the first event of the batch."""
        return replace(
            self,
            user_ids=self.user_ids[start:stop],
            attributes=None if self.attributes is None else self.attributes[start:stop],
            video_offsets=self.video_offsets[start : stop + 1],
            live_offsets=self.live_offsets[start : stop + 1],
        )


def records_from_columns(schema: RecordSchema, record: str, columns: Mapping[str, object]) -> np.ndarray:
    """Packed records [N] from integer columns [N]; MISSING (or None) becomes the least value of the stored dtype.

    A field without a column is missing in every record.  ValueError names field, value and limits when a value does
    not fit, and the field when a key is missing, a column is unknown, not of integers, or of another length.
    """
    fields = {field.name: field for field in schema.fields(record)}
    unknown = sorted(set(columns) - set(fields))
    if unknown:
        raise ValueError(f"{record}: no field {', '.join(unknown)}; fields are {', '.join(fields)}")
    wide = {name: _int64(f"{record}.{name}", column) for name, column in columns.items() if column is not None}
    lengths = {name: len(column) for name, column in wide.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{record}: columns are of different lengths: {lengths}")
    out = np.empty(next(iter(lengths.values()), 0), schema.dtype(record))
    for name, field in fields.items():
        out[name] = _narrow(schema, record, field, wide.get(name, np.full(len(out), MISSING)))
    return out


def known_at(events: np.ndarray) -> np.ndarray:
    """When each view's outcome was known, ms since 1970; MISSING while it is in progress.  [E] int64"""
    after = events["known_after"]
    known: np.ndarray = np.add(events["event_time"], after, dtype=np.int64)
    known[after == _least(after.dtype)] = MISSING  # they are in progress: their sums mean nothing
    return known


@lru_cache(maxsize=16)
def _least(dtype: np.dtype[np.integer]) -> int:
    """np.iinfo takes longer than the sums of a history."""
    return int(np.iinfo(dtype).min)


def empty_user(schema: RecordSchema) -> UserRecord:
    """A user of whom nothing is stored: version 0."""
    return UserRecord(None, np.empty(0, schema.dtype("video")), np.empty(0, schema.dtype("live")), 0)


def stamped_dtype(schema: RecordSchema, record: Said) -> np.dtype[np.void]:
    """The packed dtype of a stamped record: fields "at" and "record"."""
    return _stamped(schema.dtype(record))


def stamp(schema: RecordSchema, record: Said, records: np.ndarray, at: np.ndarray | int) -> np.ndarray:
    """Records [E] stamped with when they were said: [E], or one time for all.  ValueError when the parts do not fit."""
    require_dtype(schema, record, records)
    times = np.asarray(at, np.int64)
    if times.shape not in ((), records.shape):
        raise ValueError(f"{record}: updated_at has the shape {times.shape} for {len(records)} records")
    if (wrong := (times > TIME_LIMIT) | (times < -TIME_LIMIT)).any():
        first = times[wrong].flat[0]
        raise ValueError(f"{record}: updated_at {first} is outside -{TIME_LIMIT}..{TIME_LIMIT} ms, the times allowed")
    stamped = np.empty(len(records), stamped_dtype(schema, record))
    stamped["at"], stamped["record"] = times, records
    return stamped


def encode_user(schema: RecordSchema, user: UserRecord) -> bytes:
    """The sealed value of one user.  ValueError when an array is not of the schema's records."""
    own = np.empty(0, schema.dtype("user")) if user.attributes is None else np.atleast_1d(user.attributes)
    attributes = stamp(schema, "user", own, user.attributes_at)
    require_dtype(schema, "video", user.video)
    require_dtype(schema, "live", user.live)
    return _seal_user(schema, user.version, _raw(attributes), _raw(user.video), _raw(user.live))


def encode_users(
    schema: RecordSchema, version: int, attributes: Pieces, video: Pieces, live: Pieces
) -> Iterator[bytes]:
    """The sealed values of many users: of each 0 or 1 stamped attributes, and histories in history order."""
    parts = zip(*map(_raw_pieces, (attributes, video, live)), strict=True)
    return (_seal_user(schema, version, *part) for part in parts)


def unpack_user(schema: RecordSchema, value: bytes) -> PackedUser:
    """The parts of a sealed value.  CorruptRecord says what is wrong."""
    form, has_attributes, videos, lives, version = _unseal(schema, _USER, value)
    stamp_size = 0 if form == _UNSTAMPED else _STAMP.size
    at_video = _BODY + has_attributes * (stamp_size + schema.dtype("user").itemsize)
    at_live = at_video + videos * schema.dtype("video").itemsize
    if len(value) != at_live + lives * schema.dtype("live").itemsize:
        raise CorruptRecord("the length is not what the header says")
    attributes = value[_BODY:at_video]
    if has_attributes and form == _UNSTAMPED:
        attributes = bytes(_STAMP.size) + attributes
    return PackedUser(attributes, value[at_video:at_live], value[at_live:], version)


def decode_user(schema: RecordSchema, value: bytes) -> UserRecord:
    """The user of a sealed value.  CorruptRecord says what is wrong."""
    packed = unpack_user(schema, value)
    attributes, at = None, 0
    if packed.attributes:
        (at,) = _STAMP.unpack_from(packed.attributes)
        attributes = np.frombuffer(packed.attributes, schema.dtype("user"), 1, _STAMP.size)[0]
    video, live = np.frombuffer(packed.video, schema.dtype("video")), np.frombuffer(packed.live, schema.dtype("live"))
    return UserRecord(attributes, video, live, packed.version, at)


def encode_author(schema: RecordSchema, lives: np.ndarray, updated_at: np.ndarray, version: int) -> bytes:
    """The sealed value of one author: records "author" of its live rooms, newest last, and when each was said."""
    stamped = stamp(schema, "author", lives, updated_at)
    return next(encode_authors(schema, version, (stamped, np.array([0, len(stamped)]))))


def encode_authors(schema: RecordSchema, version: int, lives: Pieces) -> Iterator[bytes]:
    """The sealed values of many authors: stamped records "author" of each, newest last."""
    size = stamped_dtype(schema, "author").itemsize
    return (_seal(schema, _AUTHOR, 0, (len(raw) // size, 0), version, (raw,)) for raw in _raw_pieces(lives))


def decode_author(schema: RecordSchema, value: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Records "author" of its live rooms, newest last, and when each was said.  CorruptRecord says what is wrong."""
    form, _, lives, _, _ = _unseal(schema, _AUTHOR, value)
    dtype = schema.dtype("author") if form == _UNSTAMPED else stamped_dtype(schema, "author")
    if len(value) != _BODY + lives * dtype.itemsize:
        raise CorruptRecord("the length is not what the header says")
    found = np.frombuffer(value, dtype, lives, _BODY)
    return (found, np.zeros(lives, np.int64)) if form == _UNSTAMPED else (found["record"], found["at"])


def pieces(records: np.ndarray, offsets: np.ndarray) -> Iterator[np.ndarray]:
    """The records of each owner in turn."""
    return (records[start:stop] for start, stop in pairwise(offsets.tolist()))


def require_dtype(schema: RecordSchema, record: str, records: np.ndarray) -> None:
    """ValueError unless `records` is an array of the schema's records."""
    if records.dtype != schema.dtype(record) or records.ndim != 1:
        raise ValueError(f"{record}: {records.dtype} {records.shape} is not an array of {schema.dtype(record)}")


def known_users(user_ids: np.ndarray) -> np.ndarray:
    """User ids as int64; ValueError for MISSING, because all who are not known would share one history."""
    ids = np.asarray(user_ids, np.int64)
    if (ids == MISSING).any():
        raise ValueError(f"user_ids: missing in row {int((ids == MISSING).argmax())}")
    return ids


@lru_cache(maxsize=16)
def _stamped(dtype: np.dtype[np.void]) -> np.dtype[np.void]:
    return np.dtype([("at", "<i8"), ("record", dtype)])


def _raw(records: np.ndarray) -> memoryview:
    """The bytes of an array of records, not copied."""
    return np.ascontiguousarray(records).view(np.uint8).data


def _raw_pieces(owned: Pieces) -> Iterator[memoryview]:
    records, offsets = owned
    raw = _raw(records)
    return (raw[start:stop] for start, stop in pairwise((offsets * records.dtype.itemsize).tolist()))


def _seal_user(
    schema: RecordSchema, version: int, attributes: memoryview, video: memoryview, live: memoryview
) -> bytes:
    counts = len(video) // schema.dtype("video").itemsize, len(live) // schema.dtype("live").itemsize
    return _seal(schema, _USER, len(attributes) > 0, counts, version, (attributes, video, live))


def _seal(
    schema: RecordSchema,
    kind: bytes,
    attributes: int,
    counts: tuple[int, int],
    version: int,
    parts: tuple[memoryview, ...],
) -> bytes:
    header = _HEADER.pack(kind, _FORMAT, attributes, schema.version, *counts, version)
    crc = crc32(header)
    for part in parts:
        crc = crc32(part, crc)
    return b"".join((header, _CRC.pack(crc), *parts))


def _unseal(schema: RecordSchema, kind: bytes, value: bytes) -> tuple[int, int, int, int, int]:
    """Format, attributes (0 or 1), both counts, version."""
    if len(value) < _BODY:
        raise CorruptRecord(f"{len(value)} bytes are less than a header")
    found, form, attributes, schema_version, first, second, version = _HEADER.unpack_from(value)
    if found != kind or form not in (_FORMAT, _UNSTAMPED):
        raise CorruptRecord(f"kind {found!r} format {form}, expected {kind!r} format {_FORMAT}")
    (crc,) = _CRC.unpack_from(value, _HEADER.size)
    if crc != crc32(memoryview(value)[_BODY:], crc32(value[: _HEADER.size])):
        raise CorruptRecord("the checksum does not match")
    if schema_version != schema.version:
        raise CorruptRecord(f"written under schema version {schema_version}, the store's is {schema.version}")
    return form, attributes, first, second, version


def _int64(name: str, column: object) -> np.ndarray:
    values = np.asarray(column)
    if values.dtype == object:
        values = np.array([MISSING if value is None else value for value in values.tolist()])
    if values.ndim != 1 or (values.dtype.kind not in "iu" and len(values)):
        raise ValueError(f"{name}: a column is one-dimensional and of integers, not {values.dtype} {values.shape}")
    if values.dtype.kind == "u" and len(values) and values.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{name}: {values.max()} is beyond {np.iinfo(np.int64).max}")
    return values.astype(np.int64)


def _narrow(schema: RecordSchema, record: str, field: StoredField, column: np.ndarray) -> np.ndarray:
    """A checked int64 column in the field's dtype."""
    missing = column == MISSING
    if field.name in _REQUIRED[record] and missing.any():
        raise ValueError(f"{record}.{field.name}: missing in row {int(missing.argmax())}, and it is a key")
    low, high = _limits(schema, field) if record in ("video", "live") else field.bounds
    wrong = ~missing & ((column < low) | (column > high))
    if wrong.any():
        row = int(wrong.argmax())
        reason = " ms: times are kept exact in a double" if TIME_LIMIT in (-low, high) else ""
        raise ValueError(f"{record}.{field.name}: {column[row]} in row {row} is outside {low}..{high}{reason}")
    least = np.iinfo(np.dtype("<" + field.dtype)).min
    return np.where(missing, least, column).astype("<" + field.dtype)


def _limits(schema: RecordSchema, field: StoredField) -> tuple[int, int]:
    """Of an event's field: its dtype's, and what merging relies on."""
    low, high = field.bounds
    if field.name == "event_time":
        return max(low, -TIME_LIMIT), min(high, TIME_LIMIT)
    if field.name == "known_after":
        return 0, min(high, TIME_LIMIT)
    if field.name == "behaviours":
        return 0, min(high, 2 ** len(schema.behaviours) - 1)
    return low, high
