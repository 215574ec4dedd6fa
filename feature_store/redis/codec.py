"""Values in Redis to records and back.  There is no checksum: what is no whole number of records is corrupt."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from feature_store.records import CorruptRecord, Pieces, UserRecord, stamped_dtype
from feature_store.schema import RecordSchema

USER_FIELDS = ("a", "v", "l", "n")
"""Of a user's hash, in the order in which `RedisCodec.user` takes them."""

_TIME = struct.Struct("<q")


class RedisCodec:
    """Decodes under one schema."""

    def __init__(self, schema: RecordSchema) -> None:
        self._user, self._author, self._video, self._live = (
            schema.dtype(record) for record in ("user", "author", "video", "live")
        )
        self._stamped_author = stamped_dtype(schema, "author")

    def user(self, fields: Sequence[bytes | None]) -> UserRecord | None:
        """A user from the values of USER_FIELDS, its arrays views of them; None when there is none.

        CorruptRecord says what is wrong.
        """
        own, video, live, version = fields
        if version is None:
            if own is None and video is None and live is None:
                return None
            raise CorruptRecord("the version is missing")
        if not version.isdigit():
            raise CorruptRecord("the version is no number")
        attributes, at = (None, 0) if own is None else self._attributes(own)
        events = _records("video history", self._video, video), _records("live history", self._live, live)
        return UserRecord(attributes, *events, int(version), at)

    def author(self, value: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Records "author" of the live rooms, newest last, and when each was said.  CorruptRecord when damaged."""
        if len(value) == self._stamped_author.itemsize:  # the most common case, and a view of contiguous records
            return np.frombuffer(value, self._author, 1, _TIME.size), np.frombuffer(value, "<i8", 1)
        lives = _records("author", self._stamped_author, value)
        return np.ascontiguousarray(lives["record"]), lives["at"]

    def single_rooms(self, values: Sequence[bytes]) -> np.ndarray | None:
        """Records "author" [A] of as many authors, each of one live room; None when one is not that."""
        if set(map(len, values)) != {self._stamped_author.itemsize}:
            return None
        return np.ascontiguousarray(np.frombuffer(b"".join(values), self._stamped_author)["record"])

    def _attributes(self, value: bytes) -> tuple[np.void, int]:
        if len(value) != _TIME.size + self._user.itemsize:
            raise CorruptRecord(f"attributes of {len(value)} bytes")
        return np.frombuffer(value, self._user, 1, _TIME.size)[0], _TIME.unpack_from(value)[0]


def raw_pieces(pieces: Pieces) -> Iterator[bytes]:
    """The bytes of each owner's records in turn."""
    records, offsets = pieces
    start, stop = int(offsets[0]), int(offsets[-1])
    raw = records[start:stop].tobytes()
    size = records.dtype.itemsize
    return (raw[first:last] for first, last in pairwise(((offsets - start) * size).tolist()))


def _records(name: str, dtype: np.dtype[np.void], value: bytes | None) -> np.ndarray:
    if value is None:
        return np.empty(0, dtype)
    if len(value) % dtype.itemsize:
        raise CorruptRecord(f"{name} of {len(value)} bytes, which is no whole number of records of {dtype.itemsize}")
    return np.frombuffer(value, dtype)
