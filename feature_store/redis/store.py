"""The store in Redis or Valkey: one server, one behind sentinels, or a cluster.

A user is one hash, read in one trip and merged by a function in the server (merge.lua).  Authors are read through a
cache of this process.  What is stored is of a generation: `farm materialize` fills a new one and switches a pointer.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import AsyncIterator, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
from redis.asyncio import RedisCluster

from feature_store.authors import Authors
from feature_store.events.batch import EventBatch
from feature_store.merge import require_events, users_times
from feature_store.records import CorruptRecord, UserBatch, UserRecord, known_users
from feature_store.redis.author_cache import AuthorCache, Fetched, Rooms
from feature_store.redis.codec import USER_FIELDS, RedisCodec
from feature_store.redis.keys import RedisKeys
from feature_store.redis.link import RedisLink
from feature_store.redis.meta import open_namespace
from feature_store.redis.pointer import ActivePointer
from feature_store.redis.scan import Scanner
from feature_store.redis.settings import RedisSettings
from feature_store.redis.writer import RedisWriter
from feature_store.schema import RecordSchema
from feature_store.store import Applied, StoreAnswer, StoreError, StoreStats
from feature_store.warn_once import warn_once

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class RedisStore:
    """A FeatureStore in Redis.

    Usable in one event loop after another.  What was read of an author may be `author_ttl_s` old; who is not known is
    asked for again after `negative_ttl_s`.  Opening waits for the server, outside of any event loop.
    """

    def __init__(
        self,
        url: str,
        schema: RecordSchema | None = None,
        create: bool = False,
        settings: RedisSettings | None = None,
    ) -> None:
        """Arguments as `open_store`."""
        self.link = RedisLink.open(url, settings)
        self.settings = self.link.settings
        self.keys = RedisKeys(self.settings.namespace)
        opened = _in_a_loop_of_its_own(open_namespace(self.link, self.keys, schema, create))
        self._schema, self._server = opened.schema, opened.server
        self._codec = RedisCodec(self._schema)
        self._writer = RedisWriter(self.link, self._schema, self.keys)
        self._scanner = Scanner(self.link)
        self._fixed: int | None = None  # the generation, when it does not follow the pointer
        self._outdated_s = 0.0
        self._authors = self._new_cache()
        self._pointer = ActivePointer(
            self.link, self.keys, opened.generation, self.settings.pointer_cache_s, self._forget_authors
        )

    @property
    def schema(self) -> RecordSchema:
        return self._schema

    @property
    def generation(self) -> int:
        """The one that is read and written, as far as this process knows."""
        return self._pointer.value if self._fixed is None else self._fixed

    def into(self, generation: int) -> RedisStore:
        """This store, but of one generation, whatever is active.  It shares the connections; only close the first."""
        other = copy.copy(self)
        other._fixed = generation
        other._authors = other._new_cache()
        return other

    async def active(self) -> int:
        """The generation that readers are to read, as the server says now."""
        return await self._pointer.read()

    async def new_generation(self) -> int:
        """A number that no other generation has; it is empty."""
        return await self._pointer.make()

    async def switch(self, generation: int) -> None:
        """Make a generation the active one; readers learn of it within `pointer_cache_s`."""
        made = await self._pointer.made()
        if not 1 <= generation <= made:
            raise StoreError(f"store {self.link.where}: no generation {generation}; there are 1 to {made}")
        await self._pointer.switch(generation)

    async def drop(self, generation: int) -> int:
        """Remove all that is of a generation; returns how many keys.  StoreError when it is the active one.

        After a switch, wait `pointer_cache_s` and the time of a request, so that nobody reads it any more.
        """
        if generation == await self.active():
            raise StoreError(f"store {self.link.where}: generation {generation} is the active one")
        return await self._scanner.remove(self.keys.generation(generation))

    async def read(
        self, user_id: int, author_ids: Sequence[int] | np.ndarray, live_ids: np.ndarray | None = None
    ) -> StoreAnswer:
        """As the protocol says.  Authors that cannot be read now are left out when the user could be read."""
        authors, wanted = self._authors.look_up(author_ids, live_ids)
        if not wanted:
            user, corrupt = await self.read_user(user_id)
        else:
            (user, corrupt), fetched = await asyncio.gather(self.read_user(user_id), self._fetch_or_log(wanted))
            authors |= fetched
        return StoreAnswer(user, authors, corrupt)

    async def read_user(self, user_id: int) -> tuple[UserRecord | None, bool]:
        """As PartedStore."""
        key = self.keys.user(await self._current(), user_id)
        return self._decode_user(key, await self._user_fields(key))

    def keep_outdated_authors(self, age_s: float) -> None:
        """As PartedStore.  What is remembered at the moment is forgotten."""
        self._outdated_s = age_s
        self._authors = self._new_cache()

    def look_up_authors(
        self, author_ids: Sequence[int] | np.ndarray, live_ids: np.ndarray | None
    ) -> tuple[Authors, Rooms]:
        """As PartedStore."""
        return self._authors.look_up(author_ids, live_ids)

    async def fetch_authors(self, wanted: Rooms) -> Fetched:
        """As PartedStore."""
        return await self._authors.fetch(wanted)

    def outdated_authors(self, author_ids: Sequence[int]) -> Authors:
        """As PartedStore."""
        return self._authors.outdated(author_ids)

    async def put_users(self, batch: UserBatch, updated_at: int | np.ndarray = 0) -> None:
        times = users_times(batch, updated_at)
        await self._writer.put_users(await self._current(), batch, times)

    async def put_authors(self, records: np.ndarray, updated_at: np.ndarray) -> None:
        self._authors.discard(await self._writer.put_authors(await self._current(), records, updated_at))

    async def apply(self, batch: EventBatch) -> Applied:
        """As the protocol says.  When it returns, the events are in the generation that was active after all was
        written, so that none is lost when another one becomes active meanwhile."""
        require_events(self._schema, batch)
        while True:
            generation = await self._current()
            dropped = await self._writer.apply_users(generation, batch)
            authors = await self._writer.put_authors(generation, batch.authors, batch.authors_at)
            if self._fixed is not None or await self.active() == generation:
                self._authors.discard(authors)
                return Applied(len(batch) - dropped, dropped)

    async def delete_user(self, user_id: int, erased_until: int) -> bool:
        """In every generation, also in one that is being loaded."""
        known_users(np.array([user_id]))
        removed, made = 0, 0
        while (now := await self._pointer.made()) != made:  # one may have been made, and loaded, before the tombstone
            made = now
            removed += await self._writer.erase(user_id, erased_until, made)
        return removed > 0

    async def users(self, limit: int) -> list[int]:
        found: list[int] = []
        async for ids in self._scanner.ids(self.keys.users(await self._current())):
            found += ids
            if len(found) >= limit:
                break
        return sorted(set(found))[:limit]

    async def scan_users(self) -> AsyncIterator[list[tuple[int, UserRecord]]]:
        pattern = self.keys.users(await self._current())
        async for rows in self._scanner.values(pattern, "HMGET", *USER_FIELDS):
            users = ((user_id, self._decode_user(key, fields)[0]) for user_id, key, fields in rows)
            yield [(user_id, user) for user_id, user in users if user is not None]

    async def scan_authors(self) -> AsyncIterator[list[tuple[np.ndarray, np.ndarray]]]:
        pattern = self.keys.authors(await self._current())
        async for rows in self._scanner.values(pattern, "GET"):
            decoded = (self._decode_author(key, value) for _, key, value in rows)
            yield [author for author in decoded if author is not None]

    async def scan_erased(self) -> AsyncIterator[list[tuple[int, int]]]:
        async for rows in self._scanner.values(self.keys.tombstones(), "GET"):
            yield [(user_id, int(value)) for user_id, _, value in rows if value is not None]

    async def stats(self) -> StoreStats:
        generation = await self._current()
        scanner = self._scanner
        patterns = self.keys.users(generation), self.keys.authors(generation), self.keys.tombstones()
        users, authors, erased = [await scanner.count(pattern) for pattern in patterns]
        detail: dict[str, int | str] = {
            "version": self._server,
            "namespace": self.settings.namespace,
            "generation": generation,
            "bytes_per_user": await scanner.mean_bytes(patterns[0]),
            "bytes_per_author": await scanner.mean_bytes(patterns[1]),
        }
        return StoreStats(users, authors, erased, await scanner.used_memory(), detail)

    async def close(self) -> None:
        if self._fixed is None:
            await self._pointer.close()
            await self.link.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _current(self) -> int:
        return self._fixed if self._fixed is not None else await self._pointer.current()

    def _forget_authors(self) -> None:
        self._authors.purge()

    async def _user_fields(self, key: str) -> list[bytes | None]:
        with self.link.errors():
            fields: list[bytes | None] = await self.link.read("HMGET", key, *USER_FIELDS)
        self._require_answer(fields, len(USER_FIELDS))
        return fields

    async def _fetch_or_log(self, wanted: Rooms) -> Fetched:
        """An answer without some authors is better than no answer."""
        try:
            return await self._authors.fetch(wanted)
        except StoreError as error:
            _log.error("answering without %d authors: %s", len(wanted), error)
            return {}

    async def _fetch_authors(self, author_ids: list[int]) -> Fetched:
        """Those that can be read."""
        generation = await self._current()
        keys = [self.keys.author(generation, author) for author in author_ids]
        client = self.link.client
        values: list[Any]
        with self.link.errors():
            values = await (
                client.mget_nonatomic(keys) if isinstance(client, RedisCluster) else self.link.read("MGET", *keys)
            )
        self._require_answer(values, len(keys))
        found = [(author, key, value) for author, key, value in zip(author_ids, keys, values, strict=True) if value]
        records = self._codec.single_rooms([value for _, _, value in found])
        if records is not None:
            return {author: records[row : row + 1] for row, (author, _, _) in enumerate(found)}
        decoded = ((author, self._decode_author(key, value)) for author, key, value in found)
        return {author: lives[0] for author, lives in decoded if lives is not None}

    def _require_answer(self, values: Sequence[bytes | None], count: int) -> None:
        """What a damaged connection delivers may be an answer, but to no question."""
        if not isinstance(values, list) or [type(value) in (bytes, type(None)) for value in values] != [True] * count:
            raise StoreError(f"store {self.link.where}: the answer is of another shape than was asked")

    def _decode_user(self, key: str | bytes, fields: Sequence[bytes | None]) -> tuple[UserRecord | None, bool]:
        """The user, and whether there is one that cannot be read."""
        try:
            return self._codec.user(fields), False
        except CorruptRecord as error:
            warn_once(_log, f"{_text(key)}: {error}")
            return None, True

    def _decode_author(self, key: str | bytes, value: bytes | None) -> tuple[np.ndarray, np.ndarray] | None:
        try:
            return None if value is None else self._codec.author(value)
        except CorruptRecord as error:
            from feature_store.reading.metrics import count_corrupt  # a store alone needs no metrics

            count_corrupt("author")
            warn_once(_log, f"{_text(key)}: {error}")
            return None

    def _new_cache(self) -> AuthorCache:
        chosen = self.settings
        return AuthorCache(
            self._fetch_authors,
            chosen.author_cache_size,
            chosen.author_ttl_s,
            chosen.negative_ttl_s,
            outdated_s=self._outdated_s,
        )


def _text(key: str | bytes) -> str:
    return key if isinstance(key, str) else key.decode(errors="replace")


def _in_a_loop_of_its_own(work: Coroutine[Any, Any, _T]) -> _T:
    """In a thread, because the caller's may run a loop already, in which nobody can wait without a coroutine."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
