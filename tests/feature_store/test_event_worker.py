"""Workers against a real server: nothing is lost, nothing doubled, and one bad entry stops no other."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
import pytest
from prometheus_client import REGISTRY

from feature_store.events.batch import EventBatch
from feature_store.events.group import GroupConsumer
from feature_store.events.log import GROUP, EventLog
from feature_store.events.worker import EventWorker, WorkerSettings, pause_s
from feature_store.merge import merge_histories
from feature_store.redis.settings import RedisSettings
from feature_store.redis.store import RedisStore
from feature_store.schema import MISSING, RecordSchema
from loadtest.redis_servers import Server, cluster, valkey, wait_until

Make = Callable[..., np.ndarray]
Batches = Callable[..., EventBatch]
Work = Callable[[RedisStore, EventLog], Awaitable[None]]

PARTITIONS = 2
USERS = 50
QUICK = WorkerSettings(claim_idle_ms=300, block_ms=50, housekeeping_s=0.05)
PATIENCE_S = 60.0

WORKER = """
import asyncio, sys
from feature_store.events.log import EventLog
from feature_store.events.worker import EventWorker, WorkerSettings
from feature_store.store import open_store

async def work():
    async with open_store(sys.argv[1]) as store:
        await EventWorker(EventLog.of(store), store, "doomed", WorkerSettings(read_entries=20)).run(asyncio.Event())

asyncio.run(work())
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with valkey() as one:
        yield one


@pytest.fixture
def run(schema: RecordSchema, server: Server) -> Callable[[Work], None]:
    """Run something with a store and its log on an empty server."""

    async def scenario(store: RedisStore, work: Work) -> None:
        async with store:
            await work(store, EventLog(store.link, schema))

    def run_it(work: Work) -> None:
        with server.client() as client:
            client.flushall()
        store = RedisStore(server.url, schema, create=True, settings=RedisSettings(partitions=PARTITIONS))
        asyncio.run(scenario(store, work))

    return run_it


@pytest.fixture(scope="session")
def make_batch(schema: RecordSchema, make_events: Make) -> Batches:
    """Video views first, first + 1, ..., of the users 0 .. USERS-1 in turn."""

    def make(count: int, first: int = 0) -> EventBatch:
        users = np.arange(first, first + count) % USERS
        return EventBatch(users, make_events("video", count, first=first), *EventBatch.empty(schema).columns()[2:])

    return make


@asynccontextmanager
async def working(
    log: EventLog, store: RedisStore, name: str = "test", settings: WorkerSettings = QUICK
) -> AsyncIterator[None]:
    """A worker in this process."""
    stop = asyncio.Event()
    task = asyncio.create_task(EventWorker(log, store, name, settings).run(stop))
    try:
        yield
    finally:
        stop.set()
        await task


async def merged(log: EventLog) -> None:
    """Until all of the log is merged, or dead letters."""
    async with asyncio.timeout(PATIENCE_S):
        while sum((await log.lag()).values()):
            await asyncio.sleep(0.02)


async def histories(store: RedisStore) -> dict[int, np.ndarray]:
    """The video history of each user."""
    answers = {user: await store.read(user, []) for user in range(USERS)}
    return {user: answer.user.video for user, answer in answers.items() if answer.user is not None}


def expected(schema: RecordSchema, batch: EventBatch) -> dict[int, np.ndarray]:
    """The same, merged here."""
    records, offsets = merge_histories(schema, "video", batch.video, batch.video_users, USERS)
    found = {user: records[offsets[user] : offsets[user + 1]] for user in range(USERS)}
    return {user: history for user, history in found.items() if len(history)}


def assert_same(one: dict[int, np.ndarray], other: dict[int, np.ndarray]) -> None:
    assert sorted(one) == sorted(other)
    for user in one:
        np.testing.assert_array_equal(one[user], other[user])


def test_what_is_appended_is_merged(run: Callable[[Work], None], schema: RecordSchema, make_batch: Batches) -> None:
    async def work(store: RedisStore, log: EventLog) -> None:
        async with working(log, store):
            for first in range(0, 300, 100):
                await log.append(make_batch(100, first))
            await merged(log)
        assert_same(await histories(store), expected(schema, make_batch(300)))
        assert await log.dead_letters.count() == 0

    run(work)


def test_workers_share_the_log_and_repetition_does_no_harm(
    run: Callable[[Work], None], schema: RecordSchema, make_batch: Batches
) -> None:
    async def work(store: RedisStore, log: EventLog) -> None:
        async with working(log, store, "one"), working(log, store, "two"):
            for first in (200, 0, 100, 0, 200):
                await log.append(make_batch(100, first))
            await merged(log)
        assert_same(await histories(store), expected(schema, make_batch(300)))

    run(work)


def test_an_entry_that_cannot_be_read_becomes_a_dead_letter(
    run: Callable[[Work], None], schema: RecordSchema, make_batch: Batches
) -> None:
    async def work(store: RedisStore, log: EventLog) -> None:
        await log.append(make_batch(50))
        junk = await log.client.xadd(log.key(1), {"b": b"junk", "t": 1234})
        await log.client.xadd(log.key(1), {"other": b"thing"})
        await log.append(make_batch(50, first=50))
        async with working(log, store):
            await merged(log)
        assert_same(await histories(store), expected(schema, make_batch(100)))
        empty, letter = await log.dead_letters.list()
        assert letter.reason == "4 bytes are less than a header"
        assert (letter.entry, letter.accepted_ms, letter.value) == (f"1/{junk.decode()}", 1234, b"junk")
        assert (empty.reason, empty.accepted_ms, empty.value) == ("0 bytes are less than a header", 0, b"")

    run(work)


def test_only_the_entry_that_the_store_refuses_becomes_a_dead_letter(
    run: Callable[[Work], None], schema: RecordSchema, make_batch: Batches
) -> None:
    async def work(store: RedisStore, log: EventLog) -> None:
        bad = make_batch(1)
        bad = EventBatch(np.array([MISSING]), *bad.columns()[1:])
        for first in range(0, 100, 10):
            await log.append(make_batch(10, first))
            if first == 40:
                await log.append(bad)
        async with working(log, store):
            await merged(log)
        assert_same(await histories(store), expected(schema, make_batch(100)))
        (letter,) = await log.dead_letters.list()
        assert letter.reason.startswith("the store refuses it: user_ids: missing in row 0")
        assert letter.batch(schema).video_users.tolist() == [MISSING]

    run(work)


def test_an_entry_that_ends_its_workers_becomes_a_dead_letter(
    run: Callable[[Work], None], schema: RecordSchema, make_batch: Batches
) -> None:
    async def work(store: RedisStore, log: EventLog) -> None:
        await log.lag()
        killer, other = [
            await log.client.xadd(log.key(0), {"b": make_batch(10, first).to_bytes(schema)}) for first in (0, 10)
        ]
        await log.client.xreadgroup(GROUP, "dead 1", {log.key(0): ">"})
        for times in range(2, 6):
            await log.client.xclaim(log.key(0), GROUP, f"dead {times}", 0, [killer])
        async with working(log, store):
            await merged(log)
        (letter,) = await log.dead_letters.list()
        assert letter.reason == "delivered 5 times and never acknowledged"
        assert letter.entry == f"0/{killer.decode()}"
        assert_same(await histories(store), expected(schema, make_batch(10, first=10)))
        assert other != killer

    run(work)


def test_a_store_that_fails_for_a_while_loses_nothing(
    run: Callable[[Work], None], server: Server, schema: RecordSchema, make_batch: Batches
) -> None:
    patient = WorkerSettings(claim_idle_ms=1500, block_ms=50)

    async def work(store: RedisStore, log: EventLog) -> None:
        await log.append(make_batch(100))
        with server.client() as client:
            client.config_set("maxmemory", 1)
            try:
                async with working(log, store, "one", patient), working(log, store, "two", patient):
                    await asyncio.sleep(2)  # more than claim_idle_ms
                    assert set((await log.lag()).values()) == {1}, "merged by nobody, and not acknowledged"
                    pending = [await log.client.xpending_range(log.key(at), GROUP, "-", "+", 9) for at in range(2)]
                    assert {entry["times_delivered"] for some in pending for entry in some} == {1}, "taken from nobody"
                    client.config_set("maxmemory", 0)
                    await merged(log)
            finally:
                client.config_set("maxmemory", 0)
        assert_same(await histories(store), expected(schema, make_batch(100)))

    run(work)


def test_events_reach_the_generation_that_is_read(
    run: Callable[[Work], None], server: Server, schema: RecordSchema, make_batch: Batches
) -> None:
    async def work(store: RedisStore, log: EventLog) -> None:
        before = store.generation
        unaware = RedisSettings(pointer_cache_s=1000.0)
        async with RedisStore(server.url, schema, settings=unaware) as late, working(log, late):
            await log.append(make_batch(50))
            await merged(log)
            after = await store.new_generation()
            await store.switch(after)
            await log.append(make_batch(50, first=50))
            await merged(log)
        assert_same(await histories(store.into(after)), expected(schema, make_batch(50, first=50)))
        assert_same(await histories(store.into(before)), expected(schema, make_batch(100)))

    run(work)


def test_a_cluster_is_merged_as_one(schema: RecordSchema, make_batch: Batches) -> None:
    async def scenario(store: RedisStore) -> None:
        log = EventLog(store.link, schema)
        async with store, working(log, store):
            for first in range(0, 300, 100):
                await log.append(make_batch(100, first))
            await merged(log)
            assert_same(await histories(store), expected(schema, make_batch(300)))

    with cluster(masters=3, replicas=0) as nodes:
        asyncio.run(scenario(RedisStore(nodes.url, schema, create=True)))


def test_what_became_of_events_is_counted(
    run: Callable[[Work], None], schema: RecordSchema, make_batch: Batches
) -> None:
    names = {
        "applied": ("farm_events_applied_total", {}),
        "erased": ("farm_events_dropped_total", {"reason": "erased"}),
        "dead": ("farm_events_dropped_total", {"reason": "dead_letter"}),
        "entries": ("farm_event_visible_seconds_count", {}),
    }

    def counted() -> dict[str, float]:
        return {what: REGISTRY.get_sample_value(*name) or 0.0 for what, name in names.items()}

    async def work(store: RedisStore, log: EventLog) -> None:
        await store.delete_user(7, 2**50)
        await log.append(make_batch(150))
        await log.client.xadd(log.key(0), {"b": b"junk"})
        before = counted()
        async with working(log, store):
            await merged(log)
        assert {what: count - before[what] for what, count in counted().items()} == {
            "applied": 147.0,
            "erased": 3.0,
            "dead": 1.0,
            "entries": float(PARTITIONS),
        }
        assert REGISTRY.get_sample_value("farm_event_lag_entries", {"partition": "0"}) is not None

    run(work)


def test_an_erased_user_stays_erased(run: Callable[[Work], None], schema: RecordSchema, make_batch: Batches) -> None:
    async def work(store: RedisStore, log: EventLog) -> None:
        batch = make_batch(150)
        await store.delete_user(7, int(batch.video["event_time"].max()))
        await log.append(batch)
        await log.dead_letters.add("why", "0/1-0", 1, batch.to_bytes(schema))
        async with working(log, store):
            await merged(log)
            await log.dead_letters.replay()
            await merged(log)
        assert_same(await histories(store), expected(schema, batch.without_user(7)))

    run(work)


def test_a_worker_that_is_killed_loses_nothing(
    run: Callable[[Work], None], server: Server, schema: RecordSchema, make_batch: Batches
) -> None:
    async def work(store: RedisStore, log: EventLog) -> None:
        total = 36_000  # more than a worker merges between two looks at it
        for first in range(0, total, 100):
            await log.append(make_batch(100, first))
        in_hand = await asyncio.to_thread(kill_a_worker_at_work, server)
        assert in_hand > 0
        assert sum((await log.lag()).values()) >= in_hand
        async with working(log, store):
            await merged(log)
        assert_same(await histories(store), expected(schema, make_batch(total)))
        assert await log.dead_letters.count() == 0

    run(work)


def kill_a_worker_at_work(server: Server) -> int:
    """kill -9 of another process while it has entries in hand; returns how many."""
    worker = subprocess.Popen([sys.executable, "-c", WORKER, server.url])
    try:
        with server.client() as client:

            def in_hand() -> int:
                return sum(client.xpending(f"farm:default:log:{at}", GROUP)["pending"] for at in range(PARTITIONS))

            def stopped_at_work() -> bool:
                assert worker.poll() is None, "the worker ended by itself"
                if not in_hand():
                    return False
                worker.send_signal(signal.SIGSTOP)
                if in_hand():
                    return True
                worker.send_signal(signal.SIGCONT)
                return False

            wait_until(stopped_at_work, "a worker has entries in hand")
            return in_hand()
    finally:
        worker.kill()
        worker.wait()


def test_pauses_grow_up_to_a_limit() -> None:
    assert [pause_s(failures, 30_000) for failures in range(1, 9)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert [pause_s(failures, 1000) for failures in range(1, 4)] == [0.1, 0.2, 0.25]


def test_entries_whose_delivery_was_lost_are_merged_at_once(
    run: Callable[[Work], None], schema: RecordSchema, make_batch: Batches
) -> None:
    """The server gave them to this worker, and the answer never came; nobody else may claim them for an hour."""

    async def work(store: RedisStore, log: EventLog) -> None:
        await log.append(make_batch(100))
        await log.lag()  # makes the groups
        for partition in range(PARTITIONS):
            assert await GroupConsumer(log, partition, "test").read(100, 50)
        async with working(log, store, settings=replace(QUICK, claim_idle_ms=3_600_000)):
            await merged(log)
        assert_same(await histories(store), expected(schema, make_batch(100)))

    run(work)
