"""Events that could not be merged, kept for whoever finds out why: a Redis Stream with the reason of each.

At most MAX_LETTERS are kept, and each for at most about TTL_S.  They are not encrypted and hold user ids, so erasing a
user removes that user's events from those that can be read; the others cannot be attributed to anyone, and expire.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from feature_store.events.batch import EventBatch, EventBatchError
from feature_store.redis.link import RedisLink
from feature_store.schema import RecordSchema

MAX_LETTERS = 100_000
TTL_S = 30 * 86_400

_PAGE = 256
_ID = re.compile(r"[0-9]{1,19}-[0-9]{1,19}")


@dataclass(frozen=True)
class DeadLetter:
    """One entry of the log that was given up."""

    id: str
    reason: str
    entry: str  # where it was: partition/id
    accepted_ms: int  # ms since 1970
    value: bytes  # as in the log

    def batch(self, schema: RecordSchema) -> EventBatch:
        """Its events.  EventBatchError says why they cannot be read."""
        return EventBatch.from_bytes(schema, self.value)


@dataclass(frozen=True)
class Replay:
    """What became of dead letters that were to be appended again."""

    replayed: int
    unreadable: int  # kept


class DeadLetters:
    """The dead letters beside a log.

    Example: ``await log.dead_letters.replay()``
    """

    def __init__(self, link: RedisLink, schema: RecordSchema, append: Callable[[EventBatch], Awaitable[None]]) -> None:
        """append: to the log."""
        self._link, self._schema, self._append = link, schema, append
        self._key = f"farm:{link.settings.namespace}:dead"

    @property
    def _client(self) -> Any:
        return self._link.client

    async def add(self, reason: str, entry: str, accepted_ms: int, value: bytes) -> None:
        """Keep one; the oldest go when there are too many or they are too old."""
        fields: dict[str, str | int | bytes] = {"r": reason, "e": entry, "t": accepted_ms, "b": value}
        with self._link.errors():
            pipe: Any = self._link.pipeline()
            pipe.xadd(self._key, fields, maxlen=MAX_LETTERS, approximate=True)
            pipe.expire(self._key, TTL_S)  # all, when none is added for so long
            await pipe.execute()
        await self.expire()

    async def expire(self) -> int:
        """Remove those older than TTL_S; returns how many."""
        oldest = int(1000 * (time.time() - TTL_S))
        with self._link.errors():
            return int(await self._client.xtrim(self._key, minid=oldest, approximate=False))

    async def count(self) -> int:
        """How many there are."""
        with self._link.errors():
            return int(await self._client.xlen(self._key))

    async def list(self, limit: int = 100) -> list[DeadLetter]:
        """The newest, newest first."""
        with self._link.errors():
            found = await self._client.xrevrange(self._key, count=limit)
        return [_letter(*entry) for entry in found]

    async def replay(self, ids: Sequence[str] | None = None) -> Replay:
        """Append them to the log again, all or those named, and remove them from here; in this order, so none is lost.

        What belongs to an erased user is dropped when it is merged.  ValueError for an id that is not there.
        """
        replayed = unreadable = 0
        async for letter in self._letters(ids):
            try:
                batch = letter.batch(self._schema)
            except EventBatchError:
                unreadable += 1
                continue
            await self._append(batch)
            await self._remove([letter.id])
            replayed += 1
        return Replay(replayed, unreadable)

    async def discard(self, ids: Sequence[str] | None = None) -> int:
        """Remove them for good, all or those named; returns how many.  ValueError for an id that is not there."""
        found = [letter.id async for letter in self._letters(ids)]
        return await self._remove(found)

    async def erase_user(self, user_id: int) -> int:
        """Remove one user's events from all that can be read; returns from how many."""
        changed = 0
        async for letter in self._letters(None):
            try:
                batch = letter.batch(self._schema)
            except EventBatchError:
                continue
            rest = batch.without_user(user_id)
            if len(rest) == len(batch):
                continue
            if len(rest):
                await self.add(letter.reason, letter.entry, letter.accepted_ms, rest.to_bytes(self._schema))
            await self._remove([letter.id])
            changed += 1
        return changed

    async def _letters(self, ids: Sequence[str] | None) -> AsyncIterator[DeadLetter]:
        """Those named, or all up to the newest at the time of the call."""
        if ids is not None:
            for one in ids:
                yield await self._find(one)
            return
        last = [letter.id for letter in await self.list(1)]
        start = "-"
        while last:
            with self._link.errors():
                page = await self._client.xrange(self._key, start, last[0], count=_PAGE)
            if not page:
                return
            for entry in page:
                yield _letter(*entry)
            start = f"({page[-1][0].decode()}"

    async def _find(self, one: str) -> DeadLetter:
        found = []
        if _ID.fullmatch(one):
            with self._link.errors():
                found = await self._client.xrange(self._key, one, one)
        if not found:
            raise ValueError(f"no dead letter {one}; `farm ingest --dead-letters` lists them")
        return _letter(*found[0])

    async def _remove(self, ids: Sequence[str]) -> int:
        if not ids:
            return 0
        with self._link.errors():
            return int(await self._client.xdel(self._key, *ids))


def _letter(entry: bytes, fields: dict[bytes, bytes]) -> DeadLetter:
    return DeadLetter(
        entry.decode(),
        fields[b"r"].decode(),
        fields[b"e"].decode(),
        int(fields[b"t"]),
        fields[b"b"],
    )
