"""An erased user stays erased, whatever is on its way: live events, the log, its replay, dead letters, a load."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from uuid import uuid4

import numpy as np
import pytest
from builders import START_MS, user_updates, users_of_events, views

from feature_store.events.batch import EventBatch
from feature_store.events.log import EventLog
from feature_store.events.parse import FUTURE_LIMIT_MS
from feature_store.events.worker import EventWorker, WorkerSettings
from feature_store.redis.generations import Loading
from feature_store.redis.settings import RedisSettings
from feature_store.redis.store import RedisStore
from feature_store.schema import RecordSchema

Make = Callable[..., np.ndarray]

GONE, OTHER = 17, 18
QUICK = WorkerSettings(claim_idle_ms=300, block_ms=50, housekeeping_s=0.05)


def now_ms() -> int:
    return int(1000 * time.time())


def live(schema: RecordSchema, number: int) -> EventBatch:
    """A view of each user, a moment ago, and what was just said of the user who will be erased."""
    moment = now_ms() - 50
    seen = views(schema, "video", [GONE, OTHER], view_id=[number] * 2, event_time=[moment] * 2, known_after=[10] * 2)
    return EventBatch.concat([seen, user_updates(schema, [moment], user_id=[GONE], activity_group=[2])])


async def keys_of(store: RedisStore, user_id: int) -> list[bytes]:
    """Keys that hold anything of a user, but for the tombstone."""
    found = [key async for key in store.link.client.scan_iter(f"{store.keys.prefix}:*{{{user_id}}}")]
    return [key for key in found if key.decode() != store.keys.tombstone(user_id)]


async def merged(log: EventLog) -> None:
    async with asyncio.timeout(60):
        while sum((await log.lag()).values()):
            await asyncio.sleep(0.02)


@pytest.fixture(params=["redis", "cluster"])
def store(request: pytest.FixtureRequest, server_url: Callable[[str], str], schema: RecordSchema) -> RedisStore:
    settings = RedisSettings(namespace=f"t{uuid4().hex[:16]}", partitions=2, pointer_cache_s=0.05)
    return RedisStore(server_url(request.param), schema, create=True, settings=settings)


def test_an_erased_user_stays_erased(store: RedisStore, schema: RecordSchema, make_events: Make) -> None:
    async def run() -> None:
        async with store:
            log, stop = EventLog(store.link, schema), asyncio.Event()
            worker = asyncio.create_task(EventWorker(log, store, "one", QUICK).run(stop))
            sent = 0

            async def send(count: int) -> None:
                nonlocal sent
                for _ in range(count):
                    await log.append(live(schema, sent))
                    sent += 1
                    await asyncio.sleep(0.005)

            await send(20)
            await merged(log)
            before = (await store.read(GONE, [])).user
            assert before is not None
            assert len(before.video) == 20
            await log.dead_letters.add("a test", "0/1-1", now_ms(), live(schema, 900).to_bytes(schema))
            sending = asyncio.create_task(send(40))
            await asyncio.sleep(0.1)  # some are merged, some are in the log, some are still to come
            assert await store.delete_user(GONE, now_ms() + FUTURE_LIMIT_MS)
            await sending
            await log.dead_letters.replay()
            await merged(log)
            await load_old_logs(store, log, make_events)
            stop.set()
            await worker
            assert (await store.read(GONE, [])).user is None
            assert await keys_of(store, GONE) == []
            other = (await store.into(await store.active()).read(OTHER, [])).user
            assert other is not None  # whom nobody erased
            assert set(other.video["view_id"].tolist()) >= {*range(sent - 30, sent), 900}

    asyncio.run(run())


async def load_old_logs(store: RedisStore, log: EventLog, make_events: Make) -> None:
    """A load of old logs in which the user still is, and the replay of the whole log into it."""
    loading = Loading(store, log)
    async with loading.alone():
        load = await loading.begin("old logs", START_MS)
        both = users_of_events(store.schema, [GONE, OTHER], make_events("video", 6), make_events("live", 0))
        await store.into(load.generation).put_users(both, START_MS)
        finished = await loading.finish(load, say=lambda _: None)
        assert finished.replayed > 100
        await loading.retire(finished.previous)
