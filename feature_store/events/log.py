"""The durable log of events: Redis Streams, one a partition, with one consumer group that merges them.

Appending is acknowledged per partition.  A request that failed half way is sent again by the client, and the merge
makes that harmless.  Applying and acknowledging are separate steps on separate slots (worker.py): an entry that was
applied and not acknowledged is applied again, which the merge makes harmless too.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from redis.exceptions import OutOfMemoryError, ResponseError

from feature_store.events.batch import EventBatch, EventBatchError
from feature_store.events.dead_letters import DeadLetters
from feature_store.redis.link import RedisLink, as_store_error
from feature_store.redis.replicated import NotDurable, write_replicated
from feature_store.schema import RecordSchema
from feature_store.store import FeatureStore, StoreError

__all__ = ["GROUP", "START", "EventLog", "LogBusy", "LogGap", "NotDurable", "Replayed"]

GROUP = "merge"
START = "0-0"  # before the first entry

_SAMPLE_S = 0.1  # how old a lag may be when it decides
_RETRY_AFTER_S = 1
_PAGE = 256  # entries

_log = logging.getLogger(__name__)


class LogBusy(StoreError):  # noqa: N818 - it is what was found
    """Nothing or not all was appended: the workers are too far behind, or the server is out of memory."""

    def __init__(self, message: str, retry_after_s: int = _RETRY_AFTER_S) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class LogGap(StoreError):  # noqa: N818 - it is what was found
    """Entries after the position asked for are no longer kept."""


@dataclass(frozen=True)
class Replayed:
    """Some entries of a partition, joined."""

    partition: int
    position: str  # of the last of them; where to go on
    batch: EventBatch


class EventLog:
    """Appends checked events, and reads them again.  Many may share the streams.

    Example::

        await EventLog(store.link, store.schema).append(batch)
    """

    def __init__(self, link: RedisLink, schema: RecordSchema) -> None:
        self.link, self.schema, self.settings = link, schema, link.settings
        self.dead_letters = DeadLetters(link, schema, self.append)
        self._prefix = f"farm:{link.settings.namespace}"
        self._count = 0  # of partitions; 0 is not known yet
        self._lag: dict[int, int] = {}
        self._sampled = -_SAMPLE_S  # monotonic time

    @classmethod
    def of(cls, store: FeatureStore) -> EventLog | None:
        """The log beside a store; None when the store is one that merges at once."""
        from feature_store.redis.store import RedisStore

        return cls(store.link, store.schema) if isinstance(store, RedisStore) else None

    @property
    def client(self) -> Any:
        """The link's client; its types do not say that it is answered later."""
        return self.link.client

    def key(self, partition: int) -> str:
        """The stream of a partition."""
        return f"{self._prefix}:log:{partition}"

    async def accept(self, batch: EventBatch) -> None:
        """As a Sink (feature_store.events.sink)."""
        await self.append(batch)

    async def append(self, batch: EventBatch) -> None:
        """One entry to each partition that the batch touches, as durable as the settings say when it returns.

        LogBusy, NotDurable or another StoreError: not all of it may be there, so it is to be sent again.
        """
        if not len(batch):
            return
        with self.link.errors():
            parts = batch.by_partition(await self.partitions())
            await self._refuse_when_behind(parts)
            accepted = int(1000 * time.time())
            entries = {
                self.key(number): ("b", part.to_bytes(self.schema), "t", accepted) for number, part in parts.items()
            }
            results = await self._add(entries)
        for result in results:
            if isinstance(result, Exception):
                raise self._refusal(result) from result

    async def partitions(self) -> int:
        """How many there are; fixed when the store was made."""
        if not self._count:
            meta = f"{self._prefix}:meta"
            stored = await self.client.hget(meta, "partitions")
            if stored is None:
                await self.client.hsetnx(meta, "partitions", self.settings.partitions)
                stored = await self.client.hget(meta, "partitions")
            self._count = int(stored)
        return self._count

    async def lag(self) -> dict[int, int]:
        """Entries of each partition that are not merged yet; makes groups that are not there.

        Where the server cannot tell, because somebody deleted entries, all entries count.
        """
        with self.link.errors():
            numbers = range(await self.partitions())
            pipe: Any = self.link.pipeline()
            for number in numbers:
                pipe.xinfo_groups(self.key(number))
            answers = await pipe.execute(raise_on_error=False)
            self._lag = {
                number: await self._lag_of(number, found) for number, found in zip(numbers, answers, strict=True)
            }
        return self._lag

    async def positions(self) -> dict[int, str]:
        """The id of the last entry of each partition, START where there is none."""
        with self.link.errors():
            numbers = range(await self.partitions())
            pipe: Any = self.link.pipeline()
            for number in numbers:
                pipe.xrevrange(self.key(number), count=1)
            answers = await pipe.execute()
        return {
            number: found[0][0].decode() if found else START for number, found in zip(numbers, answers, strict=True)
        }

    async def positions_at(self, moment_ms: int, allow_gap: bool = False) -> dict[int, str]:
        """The id of the last entry of each partition that was appended by a moment [ms since 1970], START if none was.

        LogGap when entries that were appended later are no longer kept; with allow_gap as far back as they are kept.
        """
        with self.link.errors():
            found = {number: await self._position_at(number, moment_ms) for number in range(await self.partitions())}
        gaps = [number for number, (_, kept) in found.items() if not kept]
        if gaps and not allow_gap:
            moment = datetime.fromtimestamp(moment_ms / 1000, UTC).isoformat()
            raise LogGap(
                f"the log of live events no longer reaches back to {moment} (partition {gaps[0]}): what came between is"
                " lost unless newer logs are loaded; --allow-gap loads all the same"
            )
        return {number: position for number, (position, _) in found.items()}

    async def read_from(self, positions: Mapping[int, str]) -> AsyncIterator[Replayed]:
        """What follows the positions, up to the end at the time of the call; nothing is acknowledged.

        A partition that is not named is read from its start.  Entries that cannot be read are passed over: the workers
        make dead letters of them.  LogGap when entries were trimmed that follow a position.
        """
        for number, end in (await self.positions()).items():
            position = positions.get(number, START)
            while _ordered(position) < _ordered(end):
                with self.link.errors():
                    page = await self.client.xrange(self.key(number), f"({position}", end, count=_PAGE)
                    await self._require_kept(number, position)  # after reading, because trimming goes on meanwhile
                if not page:
                    break
                position = page[-1][0].decode()
                yield Replayed(number, position, self._joined(page))

    async def trim(self) -> int:
        """Remove the oldest entries that are merged, down to about `log_entries` a partition; returns how many.

        Entries that are not merged stay, however many they are, and so do those that a load will replay
        (feature_store.redis.generations).
        """
        removed = 0
        with self.link.errors():
            for number in range(await self.partitions()):
                removed += await self._trim(self.key(number))
        return removed

    async def stats(self) -> dict[str, int]:
        """Entries kept, entries not merged yet, partitions, dead letters."""
        lag = await self.lag()
        with self.link.errors():
            sizes = [await self.client.xlen(self.key(number)) for number in lag]
        dead = await self.dead_letters.count()
        return {"partitions": len(lag), "entries": sum(sizes), "lag": sum(lag.values()), "dead_letters": dead}

    async def make_group(self, partition: int) -> None:
        """The consumer group of a partition, from its first entry on; nothing happens when it is there."""
        try:
            await self.client.xgroup_create(self.key(partition), GROUP, START, mkstream=True)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

    async def _refuse_when_behind(self, parts: Mapping[int, EventBatch]) -> None:
        now = time.monotonic()
        if now - self._sampled >= _SAMPLE_S:
            self._sampled = now  # first, so that of the appends under way only one asks
            await self.lag()
        behind = [number for number in parts if self._lag.get(number, 0) > self.settings.max_lag]
        if behind:
            waiting = self._lag[behind[0]]
            raise LogBusy(
                f"partition {behind[0]} of the log has {waiting} entries to merge, more than {self.settings.max_lag}:"
                " start more workers (farm ingest --worker)"
            )

    async def _lag_of(self, partition: int, groups: Any) -> int:
        """From the answer to XINFO GROUPS."""
        if isinstance(groups, Exception) and not str(groups).startswith("no such key"):
            raise groups
        own = [] if isinstance(groups, Exception) else [group for group in groups if group["name"] == GROUP.encode()]
        if not own:
            await self.make_group(partition)
            return int(await self.client.xlen(self.key(partition)))
        (group,) = own
        ahead = group["lag"]
        if ahead is None:
            newest = await self.client.xrevrange(self.key(partition), count=1)
            done = not newest or _ordered(newest[0][0]) <= _ordered(group["last-delivered-id"])
            ahead = 0 if done else await self.client.xlen(self.key(partition))
        return int(ahead + group["pending"])

    async def _add(self, entries: Mapping[str, Sequence[Any]]) -> list[Any]:
        """What the server said to each; entries: fields and values by key."""
        commands = [(key, ("XADD", key, "*", *fields)) for key, fields in entries.items()]
        if self.settings.durability == "replica":
            return await write_replicated(self.link, commands)
        pipe: Any = self.link.pipeline()
        for _, command in commands:
            pipe.execute_command(*command)
        added: list[Any] = await pipe.execute(raise_on_error=False)
        return added

    def _refusal(self, error: Exception) -> StoreError:
        if isinstance(error, OutOfMemoryError):
            return LogBusy("the server that keeps the log is out of memory (maxmemory)")
        if "NOREPLICAS" in str(error):
            return NotDurable("the server that keeps the log has too few replicas in step (min-replicas-to-write)")
        return as_store_error(error, self.link.where)

    async def _require_kept(self, partition: int, position: str) -> None:
        """LogGap unless the entry at the position is there, so that all after it are."""
        key = self.key(partition)
        if position == START:
            told = await self.client.xinfo_stream(key)
            kept = told["entries-added"] == told["length"]
        else:
            kept = bool(await self.client.xrange(key, position, position))
        if not kept:
            raise LogGap(f"partition {partition} of the log no longer has all entries after {position}: start anew")

    async def _position_at(self, partition: int, moment_ms: int) -> tuple[str, bool]:
        """A position, and whether all entries after the moment follow it."""
        key = self.key(partition)
        before = await self.client.xrevrange(key, moment_ms, "-", count=1)
        if before:
            return before[0][0].decode(), True
        oldest = await self.client.xrange(key, count=1)
        if not oldest:
            return START, True
        told = await self.client.xinfo_stream(key)
        whole = told["entries-added"] == told["length"]
        return (START, True) if whole else (oldest[0][0].decode(), False)

    def _joined(self, page: Sequence[tuple[bytes, dict[bytes, bytes]]]) -> EventBatch:
        batches = [EventBatch.empty(self.schema)]
        for entry, fields in page:
            try:
                batches.append(EventBatch.from_bytes(self.schema, fields.get(b"b", b"")))
            except EventBatchError as error:
                _log.warning("entry %s of the log cannot be read: %s", entry.decode(), error)
        return EventBatch.concat(batches)

    async def _trim(self, key: str) -> int:
        excess = await self.client.xlen(key) - self.settings.log_entries
        if excess <= 0:
            return 0
        # In this order: what is delivered between the two questions is newer than `delivered`.
        loading = await self.client.hget(f"{self._prefix}:load", f"position:{key.rpartition(':')[2]}")
        groups = await self.client.xinfo_groups(key)
        delivered = next((group["last-delivered-id"] for group in groups if group["name"] == GROUP.encode()), START)
        pending = (await self.client.xpending(key, GROUP))["min"]
        merged = min((position for position in (delivered, pending, loading) if position), key=_ordered)
        # Approximate, because only then the number can be limited.
        return int(await self.client.xtrim(key, minid=merged, approximate=True, limit=excess))


def _ordered(position: str | bytes) -> tuple[int, int]:
    """An entry's id as what it is ordered by."""
    text = position.decode() if isinstance(position, bytes) else position
    milliseconds, _, sequence = text.partition("-")
    return int(milliseconds), int(sequence)
