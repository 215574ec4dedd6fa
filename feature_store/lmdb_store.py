"""The embedded store: LMDB, one machine, several processes, no server.

Readers never wait for writers; the writers of all processes wait for each other (LMDB's own lock, which the system
releases when its holder dies).  A write is one transaction: a process killed in it leaves the store as it was before.
Tables: meta, users and authors (sealed values of feature_store.records), erased (tombstones, which are kept for good).
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import lmdb
import numpy as np

from feature_store.authors import Authors, AuthorTable
from feature_store.events.batch import EventBatch
from feature_store.lmdb_environment import MAP_SIZE, Environment, Txn
from feature_store.merge import (
    as_events,
    drop_erased,
    merge_authors,
    merge_batch,
    merge_users,
    require_events,
    users_of,
    users_times,
)
from feature_store.records import (
    CorruptRecord,
    UserBatch,
    UserRecord,
    decode_author,
    decode_user,
    encode_authors,
    encode_users,
    known_users,
    stamp,
    stamped_dtype,
    unpack_user,
)
from feature_store.schema import RecordSchema, default_schema, widen
from feature_store.store import Applied, StoreAnswer, StoreError, StoreStats, require_same_schema
from feature_store.warn_once import warn_once

_SCHEMA_KEY = b"record_schema"
_AUTHORS_WRITTEN = b"authors_written"  # the last transaction that wrote authors
_USERS_PER_WRITE = 16_384  # bounds the memory of a transaction and how long other writers wait
_ROWS_PER_SCAN = 1_000
_AUTHORS_CACHED = 20_000  # about 500 bytes each

_KEY = struct.Struct(">Q")  # big endian and shifted, so that keys sort as ids do
_TIME = struct.Struct("<q")

_log = logging.getLogger(__name__)


class _Tables(NamedTuple):
    meta: lmdb._Database
    users: lmdb._Database
    authors: lmdb._Database
    erased: lmdb._Database


class LmdbStore:
    """A FeatureStore in a directory.

    Open it once, in the process that uses it, not before a fork.
    Opening waits for a write under way; reading does not.
    """

    def __init__(
        self, path: str | Path, schema: RecordSchema | None = None, create: bool = False, map_size: int = MAP_SIZE
    ) -> None:
        """Arguments as `open_store`; map_size [bytes] is where growth starts."""
        self._path = Path(path)
        if not create and not (self._path / "data.mdb").exists():
            raise self._no_store()
        self._env = Environment(self._path, map_size)
        try:
            self._tables, self._schema = self._env.write(lambda txn: self._agree(txn, schema, create))
        except BaseException:
            self._env.close()
            raise
        # Hot authors are asked for in every read.  They are as _authors_written says, so they are never stale.
        self._authors = AuthorTable()
        self._authors_written: bytes | None = None

    @property
    def schema(self) -> RecordSchema:
        return self._schema

    async def read(
        self, user_id: int, author_ids: Sequence[int] | np.ndarray, live_ids: np.ndarray | None = None
    ) -> StoreAnswer:
        """As the protocol says, in the caller's thread: a read takes microseconds and waits for nothing.  live_ids has
        no effect, because every read is of the store itself."""

        asked = np.asarray(author_ids, np.int64)

        def find(txn: Txn) -> tuple[bytes | None, Authors]:
            return txn.get(_key(user_id), db=self._tables.users), self._find_authors(txn, asked)

        value, authors = self._env.read(find)
        user, corrupt = None, False
        if value is not None:
            try:
                user = decode_user(self._schema, value)
            except CorruptRecord as error:
                corrupt = True
                warn_once(_log, f"{self._path}: user {user_id}: {error}")
        return StoreAnswer(user, authors, corrupt)

    async def put_users(self, batch: UserBatch, updated_at: int | np.ndarray = 0) -> None:
        await asyncio.to_thread(self._put_users, batch, updated_at)

    async def put_authors(self, records: np.ndarray, updated_at: np.ndarray) -> None:
        stamp(self._schema, "author", records, updated_at)  # refuses what does not fit before a transaction begins
        await asyncio.to_thread(self._env.write, lambda txn: self._merge_authors(txn, records, updated_at))

    async def apply(self, batch: EventBatch) -> Applied:
        require_events(self._schema, batch)
        return await asyncio.to_thread(self._env.write, lambda txn: self._apply(txn, batch))

    async def delete_user(self, user_id: int, erased_until: int) -> bool:
        known_users(np.array([user_id]))
        return await asyncio.to_thread(self._env.write, lambda txn: self._delete_user(txn, user_id, erased_until))

    async def users(self, limit: int) -> list[int]:
        keys = self._env.read(lambda txn: list(islice(txn.cursor(self._tables.users).iternext(True, False), limit)))
        return [_id(key) for key in keys]

    async def scan_users(self) -> AsyncIterator[list[tuple[int, UserRecord]]]:
        async for rows in self._scan(self._tables.users):
            yield list(self._decode_users(rows))

    async def scan_authors(self) -> AsyncIterator[list[tuple[np.ndarray, np.ndarray]]]:
        async for rows in self._scan(self._tables.authors):
            yield [(lives, at) for _, lives, at in self._decode_authors(rows)]

    async def scan_erased(self) -> AsyncIterator[list[tuple[int, int]]]:
        async for rows in self._scan(self._tables.erased):
            yield [(_id(key), _TIME.unpack(value)[0]) for key, value in rows]

    async def stats(self) -> StoreStats:
        users, authors, erased = self._env.read(lambda txn: [txn.stat(table)["entries"] for table in self._tables[1:]])
        size, map_size, map_used = self._env.sizes()
        version = "LMDB {}.{}.{}".format(*lmdb.version())
        detail: dict[str, int | str] = {"version": version, "map_bytes": map_size, "map_used_bytes": map_used}
        return StoreStats(users, authors, erased, size, detail)

    async def close(self) -> None:
        await asyncio.to_thread(self._env.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _agree(self, txn: Txn, asked: RecordSchema | None, create: bool) -> tuple[_Tables, RecordSchema]:
        """The tables, and the schema of the store, which is the one asked for."""
        try:
            meta, users, authors = (self._env.table(name, txn, create) for name in (b"meta", b"users", b"authors"))
        except lmdb.NotFoundError:
            raise self._no_store() from None
        tables = _Tables(meta, users, authors, self._env.table(b"erased", txn, True))  # older stores have none
        text = txn.get(_SCHEMA_KEY, db=meta)
        if text is not None:
            stored = RecordSchema.model_validate_json(text)
            require_same_schema(stored, asked or stored, str(self._path))
            return tables, stored
        schema = asked or default_schema()
        txn.put(_SCHEMA_KEY, schema.model_dump_json().encode(), db=meta)
        return tables, schema

    def _no_store(self) -> StoreError:
        return StoreError(f"no store at {self._path}: make one with `farm materialize`")

    def _put_users(self, batch: UserBatch, updated_at: int | np.ndarray) -> None:
        times = users_times(batch, updated_at)
        batch = merge_batch(self._schema, batch)
        for start in range(0, len(batch.user_ids), _USERS_PER_WRITE):
            stop = start + _USERS_PER_WRITE
            self._env.write(partial(self._put_part, part=batch.part(start, stop), times=times[start:stop]))

    def _put_part(self, txn: Txn, part: UserBatch, times: np.ndarray) -> None:
        keys = _keys(part.user_ids)
        if self._get(txn, self._tables.erased, keys) or not self._put_new(txn, keys, part, times):
            self._apply(txn, as_events(self._schema, part, times))  # merged with themselves, the new do not change

    def _put_new(self, txn: Txn, keys: list[bytes], part: UserBatch, times: np.ndarray) -> bool:
        """Put those of whom nothing is stored; whether all were."""
        own = np.empty(0, self._schema.dtype("user")) if part.attributes is None else part.attributes
        offsets = np.arange(len(keys) + 1) * (part.attributes is not None)
        attributes = stamp(self._schema, "user", own, times[: len(own)]), offsets
        histories = (part.video, part.video_offsets), (part.live, part.live_offsets)
        rows = zip(keys, encode_users(self._schema, txn.id(), attributes, *histories), strict=True)
        _, added = txn.cursor(self._tables.users).putmulti(rows, overwrite=False)
        return bool(added == len(keys))

    def _apply(self, txn: Txn, batch: EventBatch) -> Applied:
        erased = self._get(txn, self._tables.erased, _keys(users_of(batch)))
        kept = drop_erased(batch, {_id(key): _TIME.unpack(value)[0] for key, value in erased})
        self._merge_users(txn, kept)
        self._merge_authors(txn, kept.authors, kept.authors_at)
        return Applied(len(kept), len(batch) - len(kept))

    def _merge_users(self, txn: Txn, events: EventBatch) -> None:
        found = self._get(txn, self._tables.users, _keys(users_of(events)))
        ids, *parts = merge_users(self._schema, EventBatch.concat([events, self._stored_events(found)]))
        values = encode_users(self._schema, txn.id(), *parts)
        txn.cursor(self._tables.users).putmulti(zip(_keys(ids), values, strict=True))

    def _find_authors(self, txn: Txn, author_ids: np.ndarray) -> Authors:
        written = txn.get(_AUTHORS_WRITTEN, db=self._tables.meta)
        if written != self._authors_written or len(self._authors) > _AUTHORS_CACHED:
            self._authors.clear()
            self._authors_written = written
        found, absent = self._authors.find(author_ids)
        if absent.any():
            unread = author_ids[absent]
            rows = self._get(txn, self._tables.authors, _keys(unread))
            self._authors.add(unread.tolist(), {author: lives for author, lives, _ in self._decode_authors(rows)})
            found, _ = self._authors.find(author_ids)
        return found

    def _merge_authors(self, txn: Txn, records: np.ndarray, updated_at: np.ndarray) -> None:
        if not len(records):
            return
        found = self._get(txn, self._tables.authors, _keys(np.unique(widen(records["author_id"]))))
        kept = [(lives, at) for _, lives, at in self._decode_authors(found)]
        records = np.concatenate([records, *(lives for lives, _ in kept)])
        updated_at = np.concatenate([updated_at, *(at for _, at in kept)])
        ids, *lives = merge_authors(self._schema, records, updated_at)
        values = encode_authors(self._schema, txn.id(), (lives[0], lives[1]))
        txn.cursor(self._tables.authors).putmulti(zip(_keys(ids), values, strict=True))
        txn.put(_AUTHORS_WRITTEN, _KEY.pack(txn.id()), db=self._tables.meta)

    def _delete_user(self, txn: Txn, user_id: int, erased_until: int) -> bool:
        key = _key(user_id)
        before = txn.get(key, db=self._tables.erased)
        latest = erased_until if before is None else max(erased_until, _TIME.unpack(before)[0])
        txn.put(key, _TIME.pack(latest), db=self._tables.erased)
        return txn.delete(key, db=self._tables.users)

    def _get(self, txn: Txn, table: lmdb._Database, keys: list[bytes]) -> list[tuple[bytes, bytes]]:
        """Keys and values that are there."""
        return txn.cursor(table).getmulti(keys) if txn.stat(table)["entries"] else []

    def _stored_events(self, rows: list[tuple[bytes, bytes]]) -> EventBatch:
        """Stored users as the events that say the same.  One that is corrupt starts anew: events mend it."""
        ids, users = [], []
        for key, value in rows:
            try:
                users.append(unpack_user(self._schema, value))
                ids.append(_id(key))
            except CorruptRecord as error:
                _log.warning("user %d starts anew: %s", _id(key), error)
        empty = EventBatch.empty(self._schema)
        said = np.frombuffer(b"".join([user.attributes for user in users]), stamped_dtype(self._schema, "user"))
        return EventBatch(
            *_flat(ids, [user.video for user in users], empty.video.dtype),
            *_flat(ids, [user.live for user in users], empty.live.dtype),
            empty.authors,
            empty.authors_at,
            said["record"],
            said["at"],
        )

    def _decode_users(self, rows: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[int, UserRecord]]:
        """Those that can be read."""
        for key, value in rows:
            try:
                yield _id(key), decode_user(self._schema, value)
            except CorruptRecord as error:
                _log.warning("user %d: %s", _id(key), error)

    def _decode_authors(self, rows: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Those that can be read."""
        for key, value in rows:
            try:
                yield _id(key), *decode_author(self._schema, value)
            except CorruptRecord as error:
                from feature_store.reading.metrics import count_corrupt  # a store alone needs no metrics

                count_corrupt("author")
                warn_once(_log, f"{self._path}: author {_id(key)}: {error}")

    async def _scan(self, table: lmdb._Database) -> AsyncIterator[list[tuple[bytes, bytes]]]:
        """Rows in order, each part of one moment, so that a long scan keeps no old pages."""
        after = b""
        while rows := await asyncio.to_thread(self._env.read, partial(_rows_after, table=table, after=after)):
            yield rows
            after = rows[-1][0] + b"\0"


def _rows_after(txn: Txn, table: lmdb._Database, after: bytes) -> list[tuple[bytes, bytes]]:
    cursor = txn.cursor(table)
    return list(islice(cursor.iternext(), _ROWS_PER_SCAN)) if cursor.set_range(after) else []


def _flat(owners: list[int], packed: list[bytes], dtype: np.dtype[np.void]) -> tuple[np.ndarray, np.ndarray]:
    """The owner [E] of each record, and the records [E]."""
    counts = [len(part) // dtype.itemsize for part in packed]
    return np.repeat(np.array(owners, np.int64), counts), np.frombuffer(b"".join(packed), dtype)


def _keys(ids: np.ndarray) -> list[bytes]:
    packed = (ids.view(np.uint64) ^ np.uint64(1 << 63)).astype(">u8").tobytes()
    return [packed[start : start + 8] for start in range(0, len(packed), 8)]


def _key(number: int) -> bytes:
    return _KEY.pack(number + 2**63)


def _id(key: bytes) -> int:
    number: int = _KEY.unpack(key)[0]
    return number - 2**63
