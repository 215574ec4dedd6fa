"""The embedded store: LMDB, one machine, several processes, no server.

Readers never wait for writers; the writers of all processes wait for each other (LMDB's own lock, which the system
releases when its holder dies).  A write is one transaction: a process killed in it leaves the store as it was before.
"""

from __future__ import annotations

import asyncio
import logging
import os
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias, TypeVar

import lmdb
import numpy as np

from feature_store.merge import merge_authors, merge_batch, merge_histories
from feature_store.records import (
    CorruptRecord,
    UserBatch,
    UserRecord,
    decode_author,
    decode_user,
    empty_user,
    encode_author,
    encode_user,
    encode_users,
    known_users,
    pieces,
    require_dtype,
)
from feature_store.schema import Domain, RecordSchema, default_schema, widen
from feature_store.store import StoreAnswer, StoreError, StoreStats, require_same_schema

_TABLES = (b"meta", b"users", b"authors")
_SCHEMA_KEY = b"record_schema"
_MAP_SIZE = 1 << 36  # bytes of address space, not of disk; doubled when it is full
_MAX_READERS = 1024  # simultaneous reads of all processes
_USERS_PER_WRITE = 16_384  # bounds the memory of a transaction and how long other writers wait

_KEY = struct.Struct(">Q")  # big endian and shifted, so that keys sort as ids do

_T = TypeVar("_T")
_Txn: TypeAlias = "lmdb.Transaction[bytes]"
_log = logging.getLogger(__name__)


class LmdbStore:
    """A FeatureStore in a directory.

    Open it once, in the process that uses it, not before a fork.
    Opening waits for a write under way; reading does not.
    """

    def __init__(
        self, path: str | Path, schema: RecordSchema | None = None, create: bool = False, map_size: int = _MAP_SIZE
    ) -> None:
        """Arguments as `open_store`; map_size [bytes] is where growth starts."""
        self._path = Path(path)
        if not create and not (self._path / "data.mdb").exists():
            raise self._no_store()
        self._pid = os.getpid()
        self._writing = threading.Lock()  # one writer of this process at a time; taken before _mapping
        self._mapping = threading.Lock()  # held by reads, because the map must not move under them
        self._env = self._open(map_size)
        try:
            # A write, though most often it writes nothing: py-lmdb drops a table's handle when a read opened it.
            self._users_db, self._authors_db, self._schema = self._write(lambda txn: self._agree(txn, schema, create))
        except BaseException:
            self._env.close()
            raise

    @property
    def schema(self) -> RecordSchema:
        return self._schema

    async def read(self, user_id: int, author_ids: Sequence[int] | np.ndarray) -> StoreAnswer:
        """As the protocol says, in the caller's thread: a read takes microseconds and waits for nothing."""
        wanted = np.asarray(author_ids, np.int64)
        keys = _keys(wanted)

        def find(txn: _Txn) -> tuple[bytes | None, list[tuple[bytes, bytes]]]:
            return txn.get(_key(user_id), db=self._users_db), txn.cursor(self._authors_db).getmulti(keys)

        value, found = self._read(find)
        ids = dict(zip(keys, wanted.tolist(), strict=True))
        user, corrupt = None, False
        if value is not None:
            try:
                user = decode_user(self._schema, value)
            except CorruptRecord as error:
                corrupt = True
                _log.warning("user %d: %s", user_id, error)
        return StoreAnswer(user, dict(self._decode_authors((ids[key], value) for key, value in found)), corrupt)

    async def put_users(self, batch: UserBatch) -> None:
        await asyncio.to_thread(self._put_users, batch)

    async def put_authors(self, records: np.ndarray) -> None:
        await asyncio.to_thread(self._write, lambda txn: self._put_authors(txn, records))

    async def merge_events(self, domain: Domain, user_ids: np.ndarray, records: np.ndarray) -> None:
        if len(user_ids) != len(records):
            raise ValueError(f"{len(user_ids)} user ids for {len(records)} events")
        await asyncio.to_thread(self._write, lambda txn: self._merge_events(txn, domain, user_ids, records))

    async def users(self, limit: int) -> list[int]:
        keys = self._read(lambda txn: list(islice(txn.cursor(self._users_db).iternext(True, False), limit)))
        return [_id(key) for key in keys]

    async def stats(self) -> StoreStats:
        entries = self._read(lambda txn: [txn.stat(db)["entries"] for db in (self._users_db, self._authors_db)])
        return StoreStats(*entries)

    async def close(self) -> None:
        await asyncio.to_thread(self._close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _open(self, map_size: int) -> lmdb.Environment:
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            env = lmdb.open(str(self._path), map_size, max_readers=_MAX_READERS, max_dbs=8)
            env.reader_check()
            return env
        except (lmdb.Error, OSError) as error:
            raise StoreError(f"store {self._path} cannot be opened: {error}") from error

    def _agree(
        self, txn: _Txn, asked: RecordSchema | None, create: bool
    ) -> tuple[lmdb._Database, lmdb._Database, RecordSchema]:
        """The tables of users and of authors, and the schema of the store, which is the one asked for."""
        try:
            meta, users, authors = (self._env.open_db(name, txn, create=create) for name in _TABLES)
        except lmdb.NotFoundError:
            raise self._no_store() from None
        text = txn.get(_SCHEMA_KEY, db=meta)
        if text is not None:
            stored = RecordSchema.model_validate_json(text)
            require_same_schema(stored, asked or stored, str(self._path))
            return users, authors, stored
        schema = asked or default_schema()
        txn.put(_SCHEMA_KEY, schema.model_dump_json().encode(), db=meta)
        return users, authors, schema

    def _no_store(self) -> StoreError:
        return StoreError(f"no store at {self._path}: make one with `farm materialize`")

    def _put_users(self, batch: UserBatch) -> None:
        batch = merge_batch(self._schema, batch)
        for start in range(0, len(batch.user_ids), _USERS_PER_WRITE):
            self._write(partial(self._put_part, part=batch.part(start, start + _USERS_PER_WRITE)))

    def _put_part(self, txn: _Txn, part: UserBatch) -> None:
        values = encode_users(self._schema, part, txn.id())
        txn.cursor(self._users_db).putmulti(zip(_keys(part.user_ids), values, strict=True))

    def _put_authors(self, txn: _Txn, records: np.ndarray) -> None:
        require_dtype(self._schema, "author", records)
        cursor = txn.cursor(self._authors_db)
        found = cursor.getmulti(_keys(np.unique(widen(records["author_id"]))))
        kept = [lives for _, lives in self._decode_authors((_id(key), value) for key, value in found)]
        ids, records, offsets = merge_authors(self._schema, np.concatenate([*kept, records]))
        values = (encode_author(self._schema, lives, txn.id()) for lives in pieces(records, offsets))
        cursor.putmulti(zip(_keys(ids), values, strict=True))

    def _merge_events(self, txn: _Txn, domain: Domain, user_ids: np.ndarray, records: np.ndarray) -> None:
        require_dtype(self._schema, domain, records)
        ids, owners = np.unique(known_users(user_ids), return_inverse=True)
        keys = _keys(ids)
        stored = [self._stored_user(txn, key) for key in keys]
        histories = [user.history(domain) for user in stored]
        owners = np.concatenate([owners, np.repeat(np.arange(len(ids)), [len(history) for history in histories])])
        merged, offsets = merge_histories(self._schema, domain, np.concatenate([records, *histories]), owners, len(ids))
        values = (
            encode_user(self._schema, user.with_history(domain, history, txn.id()))
            for user, history in zip(stored, pieces(merged, offsets), strict=True)
        )
        txn.cursor(self._users_db).putmulti(zip(keys, values, strict=True))

    def _stored_user(self, txn: _Txn, key: bytes) -> UserRecord:
        """An empty one in place of a record that is absent or corrupt, so that new events mend it."""
        value = txn.get(key, db=self._users_db)
        if value is not None:
            try:
                return decode_user(self._schema, value)
            except CorruptRecord as error:
                _log.warning("user %d starts anew: %s", _id(key), error)
        return empty_user(self._schema)

    def _decode_authors(self, values: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, np.ndarray]]:
        """Those that can be read."""
        for author_id, value in values:
            try:
                yield author_id, decode_author(self._schema, value)
            except CorruptRecord as error:
                _log.warning("author %d: %s", author_id, error)

    def _read(self, work: Callable[[_Txn], _T]) -> _T:
        self._require_own_process()
        while True:
            try:
                with self._mapping, self._env.begin() as txn:
                    return work(txn)
            except lmdb.MapResizedError:
                with self._writing:
                    self._resize(0)
            except lmdb.ReadersFullError as error:
                if not self._env.reader_check():
                    raise StoreError(f"store {self._path}: more than {_MAX_READERS} reads at once") from error
            except lmdb.Error as error:
                raise StoreError(f"store {self._path}: {error}") from error

    def _write(self, work: Callable[[_Txn], _T]) -> _T:
        """Run `work` in one transaction, again from the start when the map had to grow."""
        self._require_own_process()
        with self._writing:
            while True:
                try:
                    self._env.reader_check()  # the dead would keep old pages from being used again
                    with self._env.begin(write=True) as txn:
                        return work(txn)
                except lmdb.MapFullError:
                    self._resize(2 * self._env.info()["map_size"])
                except lmdb.MapResizedError:
                    self._resize(0)
                except lmdb.Error as error:
                    raise StoreError(f"store {self._path}: {error}") from error

    def _resize(self, map_size: int) -> None:
        """0 takes the size that another process gave it.  Call with _writing held."""
        with self._mapping:
            self._env.set_mapsize(map_size)

    def _require_own_process(self) -> None:
        if os.getpid() != self._pid:
            raise StoreError(f"store {self._path} was opened before a fork: open it in the process that uses it")

    def _close(self) -> None:
        with self._writing, self._mapping:
            self._env.close()


def _keys(ids: np.ndarray) -> list[bytes]:
    packed = (ids.view(np.uint64) ^ np.uint64(1 << 63)).astype(">u8").tobytes()
    return [packed[start : start + 8] for start in range(0, len(packed), 8)]


def _key(number: int) -> bytes:
    return _KEY.pack(number + 2**63)


def _id(key: bytes) -> int:
    number: int = _KEY.unpack(key)[0]
    return number - 2**63
