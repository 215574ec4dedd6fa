"""A load beside the live store: no event is lost, whenever it comes, and a load that was broken off goes on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from uuid import uuid4

import numpy as np
import pytest
from builders import START_MS, users_of_events, views

from feature_store.events.batch import EventBatch
from feature_store.events.log import EventLog, LogGap
from feature_store.events.worker import EventWorker, WorkerSettings
from feature_store.redis.generations import Load, Loading
from feature_store.redis.settings import RedisSettings
from feature_store.redis.store import RedisStore
from feature_store.schema import RecordSchema
from feature_store.store import StoreError

Make = Callable[..., np.ndarray]
Work = Callable[[RedisStore, EventLog], Awaitable[None]]

LATE = 1_000_000  # view ids of live events
QUICK = WorkerSettings(claim_idle_ms=300, block_ms=50, housekeeping_s=0.05)


@pytest.fixture
def run(server_url: Callable[[str], str], schema: RecordSchema) -> Callable[..., None]:
    """Run something with a store of its own on a real server."""

    def start(work: Work, **settings: object) -> None:
        chosen = RedisSettings(namespace=f"t{uuid4().hex[:16]}", pointer_cache_s=0.05, partitions=2, **settings)  # type: ignore[arg-type]

        async def scenario() -> None:
            store = RedisStore(server_url("redis"), schema, create=True, settings=chosen)
            async with store:
                await work(store, EventLog(store.link, schema))

        asyncio.run(scenario())

    return start


async def load(store: RedisStore, log: EventLog, make_events: Make, during: Callable[[Load], Awaitable[None]]) -> int:
    """Load user 1 with ten videos, with something going on in the middle; returns events replayed."""
    loading = Loading(store, log)
    async with loading.alone():
        one = await loading.begin("logs", START_MS)
        target = store.into(one.generation)
        await target.put_users(users_of_events(store.schema, [1], make_events("video", 10), make_events("live", 0)))
        await during(one)
        finished = await loading.finish(one, say=lambda _: None)
        await loading.retire(finished.previous)
        return finished.replayed


def live_view(schema: RecordSchema, number: int, user: int = 1) -> EventBatch:
    when = START_MS + 100_000 + number
    return views(
        schema, "video", [user], view_id=[LATE + number], event_time=[when], known_after=[1], author_id=[9], tag=[2]
    )


async def view_ids(store: RedisStore, user: int = 1) -> list[int]:
    answer = await store.read(user, [])
    return [] if answer.user is None else answer.user.video["view_id"].tolist()


async def until_active(store: RedisStore, generation: int) -> None:
    ends = time.monotonic() + 5
    while store.generation != generation and time.monotonic() < ends:
        await store.read(1, [])
        await asyncio.sleep(0.02)
    assert store.generation == generation


def test_readers_see_the_old_data_until_the_switch(run: Callable[..., None], make_events: Make) -> None:
    async def work(store: RedisStore, log: EventLog) -> None:
        await store.put_users(users_of_events(store.schema, [1], make_events("video", 3), make_events("live", 0)))
        before = store.generation

        async def during(one: Load) -> None:
            assert one.generation != before
            assert await view_ids(store) == [0, 1, 2]

        await load(store, log, make_events, during)
        await until_active(store, before + 1)
        assert await view_ids(store) == list(range(10))
        assert await view_ids(store.into(before)) == []  # the old one is gone

    run(work)


def test_events_of_before_during_and_after_the_load_are_all_there(run: Callable[..., None], make_events: Make) -> None:
    """A worker merges all the while, so entries are acknowledged in the old generation alone."""

    async def work(store: RedisStore, log: EventLog) -> None:
        stop = asyncio.Event()
        worker = asyncio.create_task(EventWorker(log, store, "one", QUICK).run(stop))
        sent = 0

        async def send() -> None:
            nonlocal sent
            while not stop.is_set():
                await log.append(live_view(store.schema, sent))
                sent += 1
                await asyncio.sleep(0.01)

        sender = asyncio.create_task(send())
        await asyncio.sleep(0.1)
        assert await load(store, log, make_events, lambda _: asyncio.sleep(0.15)) > 0
        await asyncio.sleep(0.15)
        await until_active(store, 2)
        while sum((await log.lag()).values()):
            if sent < 35:  # fewer than a history keeps
                await asyncio.sleep(0.02)
                continue
            sender.cancel()
            await asyncio.sleep(0.02)
        stop.set()
        sender.cancel()
        await asyncio.gather(sender, worker, return_exceptions=True)
        expected = [*range(10), *(LATE + number for number in range(sent))][-49:]  # one more may have been sent
        assert set(expected) <= set(await view_ids(store))

    run(work)


def test_a_load_that_was_broken_off_goes_on(run: Callable[..., None], make_events: Make) -> None:
    async def work(store: RedisStore, log: EventLog) -> None:
        loading = Loading(store, log)
        async with loading.alone():
            first = await loading.begin("logs", START_MS)
            await loading.done("users 0")
        await log.append(live_view(store.schema, 1))
        async with loading.alone():
            second = await loading.begin("logs", START_MS)
            assert second == Load(first.generation, first.positions, frozenset({"users 0"}))
            assert (await loading.finish(second, say=lambda _: None)).replayed == 1
        async with loading.alone():  # it was finished, so the same source begins anew
            assert (await loading.begin("logs", START_MS)).generation == first.generation + 1

    run(work)


@pytest.mark.parametrize("source", ["logs", "other logs"])
def test_a_load_that_was_killed_after_the_switch_is_in_nobodys_way(run: Callable[..., None], source: str) -> None:
    async def work(store: RedisStore, log: EventLog) -> None:
        loading = Loading(store, log)
        await store.apply(live_view(store.schema, 1))
        first = await loading.begin("logs", START_MS)
        await loading.finish(first, say=lambda _: None)  # and no more
        await log.append(live_view(store.schema, 2))  # as if a worker had merged it just before the switch
        second = await loading.begin(source, START_MS)
        assert (second.generation, second.done) == (first.generation + 1, frozenset())
        assert await store.active() == first.generation
        assert await view_ids(store.into(first.generation)) == [LATE + 2]
        assert await view_ids(store.into(first.generation - 1)) == []  # what it had left

    run(work)


def test_a_view_that_went_on_at_the_end_of_the_logs_is_whole(run: Callable[..., None]) -> None:
    """Its beginning, which names the author, was appended before the logs end, and is not in them."""

    async def work(store: RedisStore, log: EventLog) -> None:
        now = int(1000 * time.time())
        begun = {"view_id": [7], "event_time": [now - 9]}
        await log.append(views(store.schema, "video", [1], **begun, author_id=[9]))
        await asyncio.sleep(0.05)
        ends = int(1000 * time.time())
        await log.append(views(store.schema, "video", [1], **begun, known_after=[5]))
        loading = Loading(store, log)
        await loading.finish(await loading.begin("logs", ends), say=lambda _: None)
        user = (await store.into(2).read(1, [])).user
        assert user is not None
        assert user.video[["author_id", "known_after"]].tolist() == [(9, 5)]

    run(work)


def test_a_load_of_another_source_replaces_the_broken_one(run: Callable[..., None], make_events: Make) -> None:
    async def work(store: RedisStore, log: EventLog) -> None:
        loading = Loading(store, log)
        async with loading.alone():
            first = await loading.begin("logs", START_MS)
            batch = users_of_events(store.schema, [1], make_events("video", 10), make_events("live", 0))
            await store.into(first.generation).put_users(batch)
            second = await loading.begin("other logs", START_MS)
            assert second.generation == first.generation + 1
            assert await view_ids(store.into(first.generation)) == []

    run(work)


def test_two_loads_at_once_are_refused(run: Callable[..., None]) -> None:
    async def work(store: RedisStore, log: EventLog) -> None:
        async with Loading(store, log).alone():
            with pytest.raises(StoreError, match="is loading; wait for it"):
                async with Loading(store, log).alone():
                    pass
        async with Loading(store, log).alone():
            pass

    run(work)


def test_a_log_that_does_not_reach_back_is_refused(run: Callable[..., None]) -> None:
    async def work(store: RedisStore, log: EventLog) -> None:
        for number in range(6):
            await log.append(live_view(store.schema, number))
        partition = next(number for number, position in (await log.positions()).items() if position != "0-0")
        await store.link.client.xtrim(log.key(partition), maxlen=2, approximate=False)
        loading = Loading(store, log)
        with pytest.raises(LogGap, match=r"no longer reaches back to 2023-.*--allow-gap"):
            await loading.begin("logs", START_MS)
        assert (await loading.begin("logs", START_MS, allow_gap=True)).generation == 2

    run(work)


def test_trimming_waits_for_a_load(run: Callable[..., None]) -> None:
    """Entries that a load will replay stay, though they are merged and more than are to be kept."""

    async def work(store: RedisStore, log: EventLog) -> None:
        loading = Loading(store, log)
        one = await loading.begin("logs", int(1000 * time.time()) - 60_000)
        for half in range(2):
            for number in range(150 * half, 150 * half + 150):
                await log.append(live_view(store.schema, number))
            await drain(store, log)
        assert await log.trim() == 0
        finished = await loading.finish(one, say=lambda _: None)
        assert finished.replayed == 300
        assert await log.trim() == 0
        await loading.retire(finished.previous)
        assert await log.trim() > 0

    run(work, log_entries=150, max_lag=150)


async def drain(store: RedisStore, log: EventLog) -> None:
    stop = asyncio.Event()
    worker = asyncio.create_task(EventWorker(log, store, "one", QUICK).run(stop))
    while sum((await log.lag()).values()):
        await asyncio.sleep(0.02)
    stop.set()
    await worker
