from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np

from feature_store.events.batch import EventBatch
from feature_store.events.log import EventLog
from feature_store.events.sink import open_sink
from feature_store.schema import RecordSchema
from feature_store.store import open_store
from loadtest.redis_servers import valkey

Make = Callable[..., np.ndarray]


def two_views(schema: RecordSchema, make_events: Make) -> EventBatch:
    return EventBatch(np.array([7, 7]), make_events("video", 2), *EventBatch.empty(schema).columns()[2:])


def test_lmdb_merges_at_once(schema: RecordSchema, make_events: Make, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_store(f"lmdb://{tmp_path}/store", schema, create=True) as store:
            await open_sink(store).accept(two_views(schema, make_events))
            user = (await store.read(7, [])).user
            assert user is not None
            assert user.video["view_id"].tolist() == [0, 1]

    asyncio.run(scenario())


def test_redis_takes_them_into_its_log(schema: RecordSchema, make_events: Make) -> None:
    async def scenario(url: str) -> None:
        async with open_store(url, schema, create=True) as store:
            sink = open_sink(store)
            assert isinstance(sink, EventLog)
            await sink.accept(two_views(schema, make_events))
            assert (await store.read(7, [])).user is None
            assert sum((await sink.lag()).values()) == 1

    with valkey() as server:
        asyncio.run(scenario(server.url))
