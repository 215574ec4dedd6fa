"""Merges what is in the log into the store, together with any number of other workers.

Applying and acknowledging are separate steps, on separate slots of a cluster.  Whoever dies between them leaves entries
that another worker claims and applies again; the merge makes that harmless.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass
from itertools import accumulate, islice

from feature_store.events.batch import EventBatch
from feature_store.events.group import GroupConsumer, LogEntry
from feature_store.events.log import EventLog
from feature_store.events.metrics import count_applied, count_dead, set_lag
from feature_store.redis.store import RedisStore
from feature_store.store import Applied, StoreError

_MISSED_EVERY_S = 1.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerSettings:
    """How a worker reads the log."""

    claim_idle_ms: int = 30_000  # how long an entry must be left alone before another worker takes it
    read_entries: int = 1000  # of one read
    batch_bytes: int = 100_000  # merged at once, 1,000 to 2,000 events; a greater entry is merged alone
    max_deliveries: int = 5  # an entry that was delivered more often ends its workers
    block_ms: int = 500  # how long a read waits, and so how long stopping takes; at most half of timeout_s
    housekeeping_s: float = 2.0  # between samples of the lag and trims of the log


class EventWorker:
    """One task a partition, each with a connection that waits for entries.

    Example::

        await EventWorker(log, store, "host-17").run(stop)
    """

    def __init__(self, log: EventLog, store: RedisStore, name: str, settings: WorkerSettings | None = None) -> None:
        """name: of this worker alone; two of the same name would take each other's entries for their own."""
        self._log, self._store, self._name = log, store, name
        self._settings = settings or WorkerSettings()

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`; what is in hand then is finished.  StoreError when the log cannot be reached at the start."""
        lag = await self._log.lag()
        async with asyncio.TaskGroup() as tasks:
            for partition in lag:
                consumer = GroupConsumer(self._log, partition, self._name)
                tasks.create_task(_Partition(self._log, self._store, consumer, self._settings).run(stop))
            tasks.create_task(self._keep_house(stop))

    async def _keep_house(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                set_lag(await self._log.lag())  # which makes groups anew that were lost with their server
                await self._log.trim()
                await self._log.dead_letters.expire()
            except StoreError as error:
                _log.warning("housekeeping of the log: %s", error)
            await _sleep(stop, self._settings.housekeeping_s)


class _Partition:
    """Merges one partition."""

    def __init__(self, log: EventLog, store: RedisStore, consumer: GroupConsumer, settings: WorkerSettings) -> None:
        self._log, self._store, self._consumer, self._settings = log, store, consumer, settings
        self._in_hand: dict[bytes, LogEntry] = {}  # delivered to this worker, neither merged nor dead; by id
        self._missed_at = self._claim_at = 0.0  # monotonic time
        self._target = store.into(store.generation)

    async def run(self, stop: asyncio.Event) -> None:
        failures = 0
        while not stop.is_set():
            try:
                if self._in_hand:
                    await self._consumer.keep(list(self._in_hand))  # or others would claim them while the store is down
                await self._step()
                failures = 0
            except StoreError as error:
                failures += 1
                # At 1, 2, 4, ...: a server that is down for an hour is reported often enough.
                if failures & (failures - 1) == 0:
                    _log.warning("partition %d of the log, failure %d: %s", self._consumer.partition, failures, error)
                await _sleep(stop, pause_s(failures, self._settings.claim_idle_ms))

    async def _step(self) -> None:
        """Take some entries and merge them; after a failure, those that are still in hand."""
        if not self._in_hand:
            self._in_hand = {entry.id: entry for entry in await self._take()}
        while self._in_hand:
            await self._merge(self._first_batch())

    async def _take(self) -> list[LogEntry]:
        now = time.monotonic()
        if now >= self._missed_at:  # an answer may be lost, and the client library may ask again without a word
            missed = await self._consumer.missed(self._settings.read_entries)
            if missed:
                return missed
            self._missed_at = now + _MISSED_EVERY_S
        if now >= self._claim_at:
            claimed = await self._consumer.claim(self._settings.claim_idle_ms)
            if claimed is not None:
                return [claimed]
            self._claim_at = now + self._settings.claim_idle_ms / 2000
        block_ms = min(self._settings.block_ms, int(500 * self._log.settings.timeout_s))
        return await self._consumer.read(self._settings.read_entries, block_ms)

    def _first_batch(self) -> list[LogEntry]:
        """The oldest entries in hand, at least one, that are merged at once."""
        sizes = accumulate(len(entry.value) for entry in self._in_hand.values())
        fitting = sum(1 for size in sizes if size <= self._settings.batch_bytes)
        return list(islice(self._in_hand.values(), max(1, fitting)))

    async def _merge(self, entries: list[LogEntry]) -> None:
        good = []
        for entry in entries:
            try:
                if entry.deliveries > self._settings.max_deliveries:
                    raise ValueError(f"delivered {entry.deliveries - 1} times and never acknowledged")
                good.append((entry, EventBatch.from_bytes(self._log.schema, entry.value)))
            except ValueError as error:
                await self._bury(entry, str(error))
        if good:
            await self._apply(good)

    async def _apply(self, entries: list[tuple[LogEntry, EventBatch]]) -> None:
        """Merge and acknowledge; what the store refuses is halved until the entry is found that is to blame."""
        batch = EventBatch.concat([batch for _, batch in entries])
        try:
            applied = await self._apply_to_active(batch)
        except ValueError as error:
            if len(entries) == 1:
                await self._bury(entries[0][0], f"the store refuses it: {error}", len(batch))
                return
            half = len(entries) // 2
            await self._apply(entries[:half])
            await self._apply(entries[half:])
            return
        done = [entry for entry, _ in entries]
        count_applied(applied, [entry.accepted_ms for entry in done])
        await self._acknowledge(done)

    async def _apply_to_active(self, batch: EventBatch) -> Applied:
        """Merge into the generation that is read, and again when by then another one is.

        The pointer is asked for after merging and before acknowledging.  So what is acknowledged was in the log before
        the pointer moved, where `farm materialize` finds it, or is in the new generation.
        """
        while True:
            applied = await self._target.apply(batch)
            active = await self._store.active()
            if active == self._target.generation:
                return applied
            self._target = self._store.into(active)

    async def _bury(self, entry: LogEntry, reason: str, events: int = 1) -> None:
        """Make a dead letter of an entry, in this order, so that it is not lost."""
        where = f"{self._consumer.partition}/{entry.id.decode()}"
        _log.error("entry %s of the log becomes a dead letter: %s", where, reason)
        await self._log.dead_letters.add(reason, where, entry.accepted_ms, entry.value)
        count_dead(events)
        await self._acknowledge([entry])

    async def _acknowledge(self, entries: list[LogEntry]) -> None:
        for entry in entries:  # first: when it fails, they are claimed later
            del self._in_hand[entry.id]
        await self._consumer.acknowledge([entry.id for entry in entries])


def pause_s(failures: int, claim_idle_ms: int) -> float:
    """How long to wait after so many failures in a row; short enough to say in time that entries are still in hand."""
    return float(min(0.1 * 2 ** (failures - 1), 5.0, claim_idle_ms / 4000))


async def _sleep(stop: asyncio.Event, seconds: float) -> None:
    """For some time, or until `stop`."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
