"""The log against a real server, a real master with a replica, and a real cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager

import numpy as np
import pytest

from feature_store.events.batch import EventBatch
from feature_store.events.log import GROUP, EventLog, LogBusy, LogGap, NotDurable
from feature_store.redis.link import RedisLink
from feature_store.redis.settings import RedisSettings
from feature_store.schema import RecordSchema
from feature_store.store import StoreError
from loadtest.redis_servers import Server, cluster, valkey, wait_until

Make = Callable[..., np.ndarray]
Batches = Callable[..., EventBatch]
PARTITIONS = 4


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with valkey(["--repl-diskless-sync-delay", "0"]) as one:
        yield one


@pytest.fixture
def empty(server: Server) -> Server:
    with server.client() as client:
        client.flushall()
    return server


@pytest.fixture(scope="session")
def make_batch(schema: RecordSchema, make_events: Make) -> Batches:
    """Video views of users first, first + 1, ..., one each."""

    def make(count: int, first: int = 0) -> EventBatch:
        none = EventBatch.empty(schema)
        return EventBatch(
            np.arange(first, first + count), make_events("video", count, first=first), *none.columns()[2:]
        )

    return make


def with_log(schema: RecordSchema, url: str, work: Callable[[EventLog], Awaitable[None]], **settings: object) -> None:
    """Run `work` with a log of PARTITIONS."""

    async def scenario() -> None:
        link = RedisLink.open(url, RedisSettings(**{"partitions": PARTITIONS, **settings}))  # type: ignore[arg-type]
        try:
            await work(EventLog(link, schema))
        finally:
            await link.aclose()

    asyncio.run(scenario())


async def read_all(log: EventLog, positions: dict[int, str]) -> list[int]:
    """The users of all views after the positions."""
    found = [user async for some in log.read_from(positions) for user in some.batch.video_users.tolist()]
    return sorted(found)


def test_what_is_appended_is_read(schema: RecordSchema, empty: Server, make_batch: Batches) -> None:
    async def work(log: EventLog) -> None:
        await log.append(EventBatch.empty(schema))
        assert await log.positions() == dict.fromkeys(range(PARTITIONS), "0-0")
        await log.append(make_batch(500))
        first = await log.positions()
        assert await read_all(log, {}) == list(range(500))
        assert await log.lag() == dict.fromkeys(range(PARTITIONS), 1), "one entry for each partition"
        await log.accept(make_batch(3, first=500))
        assert await read_all(log, first) == [500, 501, 502]
        assert await read_all(log, await log.positions()) == []

    with_log(schema, empty.url, work)


def test_the_store_says_how_many_partitions_there_are(schema: RecordSchema, empty: Server, make_batch: Batches) -> None:
    async def work(log: EventLog) -> None:
        await log.append(make_batch(100))
        assert len(await log.positions()) == PARTITIONS

    with_log(schema, empty.url, work)
    with_log(schema, empty.url, work, partitions=32)
    with empty.client() as client:
        assert client.hget("farm:default:meta", "partitions") == str(PARTITIONS)


def test_namespaces_are_apart(schema: RecordSchema, empty: Server, make_batch: Batches) -> None:
    async def append(log: EventLog) -> None:
        await log.append(make_batch(10))

    async def nothing(log: EventLog) -> None:
        assert await read_all(log, {}) == []

    with_log(schema, f"{empty.url}?namespace=blue", append)
    with_log(schema, empty.url, nothing)


def test_a_log_that_nobody_merges_pushes_back(schema: RecordSchema, empty: Server, make_batch: Batches) -> None:
    async def work(log: EventLog) -> None:
        for first in range(5):
            await log.append(make_batch(64, first=100 * first))
        await asyncio.sleep(0.11)  # until the lag is looked at again
        before = await log.positions()
        with pytest.raises(LogBusy, match=r"partition \d of the log has 5 entries to merge, more than 4") as caught:
            await log.append(make_batch(64))
        assert caught.value.retry_after_s >= 1
        assert await log.positions() == before, "nothing was appended"
        for partition in range(PARTITIONS):  # a consumer comes
            found = await log.client.xreadgroup(GROUP, "test", {log.key(partition): ">"}, 100)
            assert (await log.lag())[partition] == 5, "read is not merged"
            await log.client.xack(log.key(partition), GROUP, *(entry for entry, _ in found[0][1]))
        assert set((await log.lag()).values()) == {0}
        await log.append(make_batch(64, first=900))
        assert set((await log.lag()).values()) == {1}

    with_log(schema, empty.url, work, max_lag=4, log_entries=4)


def test_a_group_that_was_lost_is_made_again(schema: RecordSchema, empty: Server, make_batch: Batches) -> None:
    async def work(log: EventLog) -> None:
        await log.append(make_batch(64))
        await log.client.xgroup_destroy(log.key(1), GROUP)
        assert (await log.lag())[1] == 1
        assert await log.client.xreadgroup(GROUP, "test", {log.key(1): ">"}, 100), "from the first entry on"
        await log.client.flushall()
        assert set((await log.lag()).values()) == {0}

    with_log(schema, empty.url, work)


def test_entries_that_somebody_deleted_do_not_stop_the_log(
    schema: RecordSchema, empty: Server, make_batch: Batches
) -> None:
    async def work(log: EventLog) -> None:
        await log.append(make_batch(1))
        (partition,) = (number for number, position in (await log.positions()).items() if position != "0-0")
        for _ in range(3):
            await log.append(make_batch(1))
        await log.client.xdel(log.key(partition), (await log.positions())[partition])
        assert (await log.lag())[partition] == 3
        await log.client.xreadgroup(GROUP, "test", {log.key(partition): ">"}, 100, noack=True)
        assert (await log.lag())[partition] == 0

    with_log(schema, empty.url, work)


def test_only_what_is_merged_is_trimmed(schema: RecordSchema, empty: Server, make_batch: Batches) -> None:
    async def merge(log: EventLog, entries: int) -> list[bytes]:
        ((_, found),) = await log.client.xreadgroup(GROUP, "test", {log.key(0): ">"}, entries)
        return [entry for entry, _ in found]

    async def work(log: EventLog) -> None:
        await log.lag()
        for _ in range(1000):
            await log.client.xadd(log.key(0), {"b": make_batch(1).to_bytes(schema)})
        assert await log.trim() == 0, "nothing is merged"
        oldest, *others = await merge(log, 600)
        await log.client.xack(log.key(0), GROUP, *others)
        assert await log.trim() == 0, "the oldest is not merged"
        await log.client.xack(log.key(0), GROUP, oldest)
        removed = await log.trim()
        assert 400 <= removed <= 600, "whole blocks of what is merged"
        assert (await log.lag())[0] == 400
        await log.client.xack(log.key(0), GROUP, *await merge(log, 1000))
        await log.trim()
        assert 100 <= await log.client.xlen(log.key(0)) < 250, "about log_entries stay for replay"

    with_log(schema, empty.url, work, log_entries=100, max_lag=100)


def test_a_gap_before_a_replay_is_noticed(schema: RecordSchema, empty: Server, make_batch: Batches) -> None:
    async def work(log: EventLog) -> None:
        for first in range(300):
            await log.append(make_batch(1, first=first))
        start = await log.positions()
        some = next(number for number, position in start.items() if position != "0-0")
        assert len(await read_all(log, {})) == 300
        key = log.key(some)
        await log.append(EventBatch.concat([make_batch(300, first=first) for first in range(0, 3000, 300)]))
        await log.client.xtrim(key, minid=(await log.positions())[some], approximate=False)
        assert await log.client.xlen(key) == 1
        with pytest.raises(LogGap, match=f"partition {some} of the log no longer has all entries after {start[some]}"):
            await read_all(log, start)
        with pytest.raises(LogGap, match="after 0-0"):
            await read_all(log, {})

    with_log(schema, empty.url, work)


def test_entries_that_cannot_be_read_are_passed_over(schema: RecordSchema, empty: Server, make_batch: Batches) -> None:
    async def work(log: EventLog) -> None:
        await log.append(make_batch(20))
        await log.client.xadd(log.key(0), {"b": b"junk"})
        await log.client.xadd(log.key(1), {"something": 1})
        await log.append(make_batch(20, first=20))
        assert await read_all(log, {}) == list(range(40))

    with_log(schema, empty.url, work)


def test_a_server_without_memory_pushes_back(schema: RecordSchema, empty: Server, make_batch: Batches) -> None:
    async def work(log: EventLog) -> None:
        await log.append(make_batch(100))
        with empty.client() as client:
            client.config_set("maxmemory", 1)
        try:
            with pytest.raises(LogBusy, match="out of memory"):
                await log.append(make_batch(100))
        finally:
            with empty.client() as client:
                client.config_set("maxmemory", 0)
        await log.append(make_batch(100))

    with_log(schema, empty.url, work)


def test_a_server_that_is_down_is_an_error(schema: RecordSchema, make_batch: Batches) -> None:
    async def work(log: EventLog) -> None:
        with pytest.raises(StoreError, match="connection refused"):
            await log.append(make_batch(1))

    with_log(schema, "redis://127.0.0.1:1", work)


def test_a_replica_must_confirm(schema: RecordSchema, empty: Server, make_batch: Batches) -> None:
    async def alone(log: EventLog) -> None:
        with pytest.raises(NotDurable, match="no replica confirmed what was written within 30 ms"):
            await log.append(make_batch(100))

    async def followed(log: EventLog) -> None:
        await log.append(make_batch(100))
        assert set((await log.lag()).values()) == {2}, "those of before are there too"

    with_log(schema, empty.url, alone, durability="replica", wait_ms=30)
    with following(empty), empty.client() as client:
        wait_until(lambda: client.set("other", 1) and client.wait(1, 100) == 1, "the replica confirms")
        with_log(schema, empty.url, followed, durability="replica", wait_ms=900)


def following(server: Server) -> AbstractContextManager[Server]:
    """A replica of a server."""
    return valkey(["--replicaof", "127.0.0.1", str(server.port)])


def test_a_server_that_wants_replicas_refuses(schema: RecordSchema, empty: Server, make_batch: Batches) -> None:
    async def work(log: EventLog) -> None:
        await log.partitions()
        await log.lag()
        with empty.client() as client:
            client.config_set("min-replicas-to-write", 1)
        try:
            with pytest.raises(NotDurable, match="min-replicas-to-write"):
                await log.append(make_batch(100))
        finally:
            with empty.client() as client:
                client.config_set("min-replicas-to-write", 0)

    with_log(schema, empty.url, work)
    with_log(schema, empty.url, work, durability="replica")


def test_partitions_of_a_cluster_are_on_its_nodes(schema: RecordSchema, make_batch: Batches) -> None:
    async def append(log: EventLog) -> None:
        await log.append(make_batch(100, first=len(await read_all(log, {}))))

    async def look(log: EventLog) -> None:
        assert await read_all(log, {}) == list(range(200))
        kept = 2 * PARTITIONS
        assert await log.stats() == {"partitions": PARTITIONS, "entries": kept, "lag": kept, "dead_letters": 0}

    with cluster(masters=3, replicas=1) as nodes:
        with_log(schema, nodes.url, append)
        with_log(schema, nodes.url, append, durability="replica", wait_ms=900)
        with_log(schema, nodes.url, look)
        assert len({nodes.master_of(f"farm:default:log:{number}").port for number in range(PARTITIONS)}) > 1
        for node in nodes.nodes[3:]:
            node.kill()
        with pytest.raises(NotDurable, match="no replica confirmed"):
            with_log(schema, nodes.url, append, durability="replica", wait_ms=30)
