"""The codec: columns of integers to packed records, and what a store keeps of one user or one author.

A value is a header, a CRC-32 of all the rest, then packed records, contiguous:
a user is attributes (0 or 1 record), video history, live history; an author is its live rooms, newest last.
Letters: U users, E events.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from zlib import crc32

import numpy as np

from feature_store.schema import MISSING, Domain, RecordSchema, StoredField, widen

_HEADER = struct.Struct("<2sBBIIIQ")  # kind, format, attributes, schema version, first count, second count, version
_CRC = struct.Struct("<I")
_BODY = _HEADER.size + _CRC.size
_FORMAT = 1
_USER, _AUTHOR = b"FU", b"FA"

_TIME_LIMIT = 2**61 - 1  # so that sums and differences of times stay int64
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

    def history(self, domain: Domain) -> np.ndarray:
        """The events of one domain."""
        return self.video if domain == "video" else self.live

    def with_history(self, domain: Domain, events: np.ndarray, version: int) -> UserRecord:
        """The same user with other events in one domain."""
        video, live = (events, self.live) if domain == "video" else (self.video, events)
        return UserRecord(self.attributes, video, live, version)


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
    after = widen(events["known_after"])
    return np.where(after == MISSING, MISSING, events["event_time"] + np.where(after == MISSING, 0, after))


def empty_user(schema: RecordSchema) -> UserRecord:
    """A user of whom nothing is stored: version 0."""
    return UserRecord(None, np.empty(0, schema.dtype("video")), np.empty(0, schema.dtype("live")), 0)


def encode_user(schema: RecordSchema, user: UserRecord) -> bytes:
    """The stored value of one user.  ValueError when an array is not of the schema's records."""
    attributes = b"" if user.attributes is None else user.attributes.tobytes()
    histories = _raw(schema, "video", user.video), _raw(schema, "live", user.live)
    return _seal_user(schema, user.version, attributes, *histories)


def encode_users(schema: RecordSchema, batch: UserBatch, version: int) -> Iterator[bytes]:
    """The stored values of a batch, in its order; the histories must be in history order already."""
    attributes = np.empty(0, schema.dtype("user")) if batch.attributes is None else batch.attributes
    attribute_offsets = np.arange(len(batch.user_ids) + 1) * (batch.attributes is not None)
    parts = zip(
        _raw_pieces(schema, "user", attributes, attribute_offsets),
        _raw_pieces(schema, "video", batch.video, batch.video_offsets),
        _raw_pieces(schema, "live", batch.live, batch.live_offsets),
        strict=True,
    )
    for own, video, live in parts:
        yield _seal_user(schema, version, own, video, live)


def decode_user(schema: RecordSchema, value: bytes) -> UserRecord:
    """The user of a stored value, its arrays views of it.  CorruptRecord says what is wrong."""
    has_attributes, videos, lives, version = _unseal(schema, _USER, value)
    user, video, live = (schema.dtype(record) for record in ("user", "video", "live"))
    at_video = _BODY + has_attributes * user.itemsize
    at_live = at_video + videos * video.itemsize
    if len(value) != at_live + lives * live.itemsize:
        raise CorruptRecord("the length is not what the header says")
    return UserRecord(
        np.frombuffer(value, user, 1, _BODY)[0] if has_attributes else None,
        np.frombuffer(value, video, videos, at_video),
        np.frombuffer(value, live, lives, at_live),
        version,
    )


def encode_author(schema: RecordSchema, lives: np.ndarray, version: int) -> bytes:
    """The stored value of one author: records "author" of its live rooms, newest last."""
    return _seal(schema, _AUTHOR, False, (len(lives), 0), version, (_raw(schema, "author", lives),))


def decode_author(schema: RecordSchema, value: bytes) -> np.ndarray:
    """Records "author" of its live rooms, newest last.  CorruptRecord says what is wrong."""
    _, lives, _, _ = _unseal(schema, _AUTHOR, value)
    dtype = schema.dtype("author")
    if len(value) != _BODY + lives * dtype.itemsize:
        raise CorruptRecord("the length is not what the header says")
    return np.frombuffer(value, dtype, lives, _BODY)


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


def _raw(schema: RecordSchema, record: str, records: np.ndarray) -> memoryview:
    """The bytes of an array of records, not copied."""
    require_dtype(schema, record, records)
    return np.ascontiguousarray(records).view(np.uint8).data


def _raw_pieces(schema: RecordSchema, record: str, records: np.ndarray, offsets: np.ndarray) -> Iterator[memoryview]:
    raw = _raw(schema, record, records)
    return (raw[start:stop] for start, stop in pairwise((offsets * schema.dtype(record).itemsize).tolist()))


def _seal_user(
    schema: RecordSchema, version: int, own: bytes | memoryview, video: memoryview, live: memoryview
) -> bytes:
    counts = len(video) // schema.dtype("video").itemsize, len(live) // schema.dtype("live").itemsize
    return _seal(schema, _USER, len(own) > 0, counts, version, (own, video, live))


def _seal(
    schema: RecordSchema,
    kind: bytes,
    attributes: bool,
    counts: tuple[int, int],
    version: int,
    parts: Sequence[bytes | memoryview],
) -> bytes:
    header = _HEADER.pack(kind, _FORMAT, attributes, schema.version, *counts, version)
    crc = crc32(header)
    for part in parts:
        crc = crc32(part, crc)
    return b"".join((header, _CRC.pack(crc), *parts))


def _unseal(schema: RecordSchema, kind: bytes, value: bytes) -> tuple[int, int, int, int]:
    """Attributes (0 or 1), both counts, version."""
    if len(value) < _BODY:
        raise CorruptRecord(f"{len(value)} bytes are less than a header")
    found, form, attributes, schema_version, first, second, version = _HEADER.unpack_from(value)
    (crc,) = _CRC.unpack_from(value, _HEADER.size)
    if (found, form) != (kind, _FORMAT):
        raise CorruptRecord(f"kind {found!r} format {form}, expected {kind!r} format {_FORMAT}")
    if crc != crc32(memoryview(value)[_BODY:], crc32(value[: _HEADER.size])):
        raise CorruptRecord("the checksum does not match")
    if schema_version != schema.version:
        raise CorruptRecord(f"written under schema version {schema_version}, the store's is {schema.version}")
    return attributes, first, second, version


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
        raise ValueError(f"{record}.{field.name}: {column[row]} in row {row} is outside {low}..{high}")
    least = np.iinfo(np.dtype("<" + field.dtype)).min
    return np.where(missing, least, column).astype("<" + field.dtype)


def _limits(schema: RecordSchema, field: StoredField) -> tuple[int, int]:
    """Of an event's field: its dtype's, and what merging relies on."""
    low, high = field.bounds
    if field.name == "event_time":
        return max(low, -_TIME_LIMIT), min(high, _TIME_LIMIT)
    if field.name == "known_after":
        return 0, min(high, _TIME_LIMIT)
    if field.name == "behaviours":
        return 0, min(high, 2 ** len(schema.behaviours) - 1)
    return low, high
