"""Backup and restore: everything a store holds, of any backend, in one file.

    magic, then frames: kind (1 byte), length (4), CRC-32 of the payload (4), payload
    H  the header, JSON: record schema, when it was made
    E  a tombstone: user id, erased_until
    U  a user: id, then the sealed value of feature_store.records
    A  an author: the sealed value
    Z  the end: how many of each

Numbers are little endian.  A file without its end was not finished and is refused before anything is restored.
"""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO
from zlib import crc32

import numpy as np

from feature_store.records import (
    CorruptRecord,
    UserBatch,
    UserRecord,
    decode_author,
    decode_user,
    encode_author,
    encode_user,
)
from feature_store.schema import DOMAINS, RecordSchema
from feature_store.store import FeatureStore, StoreError, require_same_schema

_MAGIC = b"FARM backup 1\n"
_FRAME = struct.Struct("<cII")
_ID = struct.Struct("<q")
_TOMBSTONE = struct.Struct("<qq")
_USERS_AT_ONCE = 2_000
_LONGEST = 1 << 30  # bytes of a frame

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Contents:
    """How much a backup holds."""

    users: int
    authors: int
    erased: int


async def backup(store: FeatureStore, path: str | Path, progress: Progress | None = None) -> Contents:
    """Write all that `store` holds to a new file, readable by its owner alone.  What is written to the store meanwhile
    may be in it or not; a user may be in it twice.  FileExistsError: a backup is never overwritten."""
    target = Path(path)
    if target.exists():
        raise FileExistsError(f"{target} is there already: a backup is never overwritten, give another name")
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            contents = await _write(store, file, progress)
            file.flush()
            os.fsync(file.fileno())
        os.rename(scratch, target)
    finally:
        scratch.unlink(missing_ok=True)
    return contents


async def restore(store: FeatureStore, path: str | Path, progress: Progress | None = None) -> Contents:
    """Merge a backup into `store`: tombstones first, so that who was erased stays so; a tombstone that `store` does not
    have yet erases all that it holds of the user.

    StoreError when the file is damaged, unfinished or of another record schema; then nothing was restored.
    """
    source = Path(path)
    schema, contents = inspect(source)
    require_same_schema(store.schema, schema, f"of the restore from {source}")
    erased = {user_id: until async for some in store.scan_erased() for user_id, until in some}
    for frames in _batches(_frames(source), b"E"):
        for user_id, until in map(_TOMBSTONE.unpack, frames):
            if erased.get(user_id, until - 1) < until:
                await store.delete_user(user_id, until)
    done = 0
    for frames in _batches(_frames(source), b"U"):
        for batch, times in _users(schema, frames):
            await store.put_users(batch, times)
        done += len(frames)
        if progress is not None:
            progress(f"{done:,} of {contents.users:,} users")
    for frames in _batches(_frames(source), b"A"):
        parts = [decode_author(schema, payload) for payload in frames]
        await store.put_authors(np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]))
    return contents


def inspect(path: Path) -> tuple[RecordSchema, Contents]:
    """The record schema of a backup and how much is in it, once every frame was read.  StoreError: it is damaged."""
    counts = dict.fromkeys((b"U", b"A", b"E"), 0)
    schema, end = None, None
    for kind, payload in _frames(path):
        if end is not None:
            raise StoreError(f"backup {path}: there is more after its end")
        if kind == b"H":
            schema = RecordSchema.model_validate(json.loads(payload)["schema"])
        elif kind == b"Z":
            end = Contents(**json.loads(payload))
        elif kind in counts:
            counts[kind] += 1
        else:
            raise StoreError(f"backup {path}: a frame of kind {kind!r}, which this version does not know")
    if schema is None or end is None:
        raise StoreError(
            f"backup {path}: it has no {'header' if schema is None else 'end'}; the backup was not finished"
        )
    if end != Contents(counts[b"U"], counts[b"A"], counts[b"E"]):
        raise StoreError(f"backup {path}: it says it holds {end}, and holds {counts}")
    return schema, end


async def _write(store: FeatureStore, file: BinaryIO, progress: Progress | None) -> Contents:
    schema = store.schema
    file.write(_MAGIC)
    _put(file, b"H", json.dumps({"schema": schema.model_dump(), "created_ms": int(1000 * time.time())}).encode())
    erased = users = authors = 0
    async for tombstones in store.scan_erased():
        for tombstone in tombstones:
            _put(file, b"E", _TOMBSTONE.pack(*tombstone))
            erased += 1
    async for records in store.scan_users():
        for user_id, user in records:
            _put(file, b"U", _ID.pack(user_id) + encode_user(schema, user))
        users += len(records)
        if progress is not None:
            progress(f"{users:,} users")
    async for found in store.scan_authors():
        for lives, updated_at in found:
            _put(file, b"A", encode_author(schema, lives, updated_at, 0))
        authors += len(found)
    contents = Contents(users, authors, erased)
    _put(file, b"Z", json.dumps(asdict(contents)).encode())
    return contents


def _put(file: BinaryIO, kind: bytes, payload: bytes) -> None:
    file.write(_FRAME.pack(kind, len(payload), crc32(payload)))
    file.write(payload)


def _frames(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Kind and payload of every frame."""
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise StoreError(f"backup {path}: not a backup of this version")
        while head := file.read(_FRAME.size):
            if len(head) < _FRAME.size:
                raise StoreError(f"backup {path}: it breaks off at byte {file.tell()}")
            kind, length, crc = _FRAME.unpack(head)
            payload = file.read(length) if length <= _LONGEST else b""
            if len(payload) < length or crc32(payload) != crc:
                raise StoreError(f"backup {path}: damaged at byte {file.tell()}")
            yield kind, payload


def _batches(frames: Iterator[tuple[bytes, bytes]], wanted: bytes) -> Iterator[list[bytes]]:
    """The payloads of one kind, some at a time."""
    payloads = (payload for kind, payload in frames if kind == wanted)
    while batch := list(islice(payloads, _USERS_AT_ONCE)):
        yield batch


def _users(schema: RecordSchema, frames: list[bytes]) -> Iterator[tuple[UserBatch, np.ndarray]]:
    """Batches for `put_users`, of users with attributes and of those without, and when the attributes were said."""
    try:
        users = [(int(_ID.unpack_from(frame)[0]), decode_user(schema, frame[_ID.size :])) for frame in frames]
    except CorruptRecord as error:
        raise StoreError(f"the backup holds a user that cannot be read: {error}") from None
    for told in (True, False):
        if some := [(user_id, user) for user_id, user in users if (user.attributes is not None) == told]:
            yield _batch(schema, some, told), np.array([user.attributes_at for _, user in some])


def _batch(schema: RecordSchema, users: list[tuple[int, UserRecord]], told: bool) -> UserBatch:
    histories = {}
    for domain in DOMAINS:
        parts = [user.history(domain) for _, user in users]
        offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
        histories[domain] = (np.concatenate(parts), offsets)
    attributes = np.array([user.attributes for _, user in users], schema.dtype("user")) if told else None
    return UserBatch(np.array([user_id for user_id, _ in users]), attributes, *histories["video"], *histories["live"])
