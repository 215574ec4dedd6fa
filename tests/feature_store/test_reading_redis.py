"""The ladder over a real server that stalls, dies, comes back and answers garbage, behind a proxy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from uuid import uuid4

import numpy as np
import pytest
from builders import users_of_events

from feature_store.events.batch import EventBatch
from feature_store.reading.reader import LadderReader, Reading
from feature_store.reading.settings import ReadingSettings
from feature_store.records import records_from_columns
from feature_store.redis.settings import RedisSettings
from feature_store.redis.store import RedisStore
from feature_store.schema import default_schema
from loadtest.proxy import TcpProxy, tcp_proxy
from loadtest.redis_servers import Server, valkey

SCHEMA = default_schema()
BUDGET_S = 0.2  # many times what a reading takes on a busy machine
SETTINGS = ReadingSettings(budget_ms=1000 * BUDGET_S, failures_in_row=3, probe_interval_s=0.05)
REDIS = RedisSettings(timeout_s=1, author_ttl_s=1e-9, negative_ttl_s=0)  # so that authors are asked for each time
USERS, AUTHORS = (7, 8), np.array([1, 2])
LADDER = ("stale_history", "stale_authors")
Work = Callable[["Scene"], Awaitable[None]]


class Scene:
    """A store behind a proxy, and its reader."""

    def __init__(self, server: Server, proxy: TcpProxy, store: RedisStore) -> None:
        self.server, self.proxy, self.store = server, proxy, store
        self.reader = LadderReader(store, SETTINGS)

    async def read(self, user: int = 7) -> Reading:
        """One that was limited in time."""
        began = time.monotonic()
        reading = await self.reader.read(user, AUTHORS, None, 2 * BUDGET_S)
        assert time.monotonic() - began < 4 * BUDGET_S
        return reading

    async def whole(self) -> None:
        """Back to whole, and soon."""
        async with asyncio.timeout(2):
            while (await self.read()).degraded:
                await asyncio.sleep(0.01)
        reading = await self.read()
        assert (reading.degraded, reading.cause) == ((), "")
        assert_known(reading)


def assert_known(reading: Reading) -> None:
    assert reading.found.user is not None
    assert len(reading.found.user.video) == 3
    assert sorted(reading.found.authors) == [1, 2]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One that these tests harm in turn; each leaves it running."""
    with valkey() as started:
        yield started


def run(server: Server, work: Work) -> None:
    async def scenario(proxy: TcpProxy) -> None:
        url = f"redis://127.0.0.1:{proxy.port}?namespace=t{uuid4().hex[:16]}"
        async with RedisStore(url, SCHEMA, True, REDIS) as store:
            await fill(store)
            scene = Scene(server, proxy, store)
            assert_known(await scene.read())
            await work(scene)

    with tcp_proxy(server.port) as proxy:
        asyncio.run(scenario(proxy))


async def fill(store: RedisStore) -> None:
    views = np.arange(6)
    columns = {"view_id": views, "event_time": views, "known_after": np.zeros(6, np.int64)}
    await store.put_users(
        users_of_events(SCHEMA, USERS, records_from_columns(SCHEMA, "video", columns), EventBatch.empty(SCHEMA).live)
    )
    await store.put_authors(
        records_from_columns(SCHEMA, "author", {"author_id": AUTHORS, "live_id": 10 * AUTHORS}), np.ones(2, np.int64)
    )


def test_a_stalled_server_is_given_up_and_used_again(server: Server) -> None:
    async def work(scene: Scene) -> None:
        scene.proxy.stall()
        causes = []
        for _ in range(10):
            reading = await scene.read()
            assert reading.degraded == LADDER
            assert_known(reading)
            causes.append(reading.cause)
        assert causes[:3] == ["slow"] * 3
        assert "open" in causes[3:]
        unknown = await scene.read(user=8)
        assert unknown.degraded == ("no_history", "stale_authors")
        scene.proxy.flow()
        await scene.whole()

    run(server, work)


def test_late_answers_go_to_nobody_else(server: Server) -> None:
    """A reading that was given up leaves its answer in a connection; the next user must not get it."""

    async def work(scene: Scene) -> None:
        await scene.store.delete_user(8, 0)
        for _ in range(4):
            scene.proxy.stall()
            assert (await scene.read()).degraded == LADDER
            scene.proxy.flow()
            await scene.whole()
            readings = await asyncio.gather(*(scene.reader.read(user, (), None, None) for user in (8, 7) * 10))
            assert [reading.found.user is not None for reading in readings] == [False, True] * 10

    run(server, work)


def test_a_server_that_dies_and_comes_back(server: Server) -> None:
    async def work(scene: Scene) -> None:
        scene.server.kill()
        for _ in range(8):
            reading = await scene.read()
            assert reading.degraded == LADDER
            assert_known(reading)
        assert scene.reader.breaker.state != "closed"
        await asyncio.to_thread(scene.server.restart)
        async with asyncio.timeout(2):
            while (await scene.read()).degraded:
                await asyncio.sleep(0.01)
        assert (await scene.read()).found.user is None  # it kept nothing, and says so

    run(server, work)


@pytest.mark.parametrize("share", [0.05, 1.0])
def test_garbage_is_an_answer_like_none(server: Server, share: float) -> None:
    async def work(scene: Scene) -> None:
        scene.proxy.corrupt(share, "to_client", seed=3)
        for _ in range(12):
            reading = await scene.read(user=8)  # any may come as it is meant to when few bytes are others
            assert set(reading.degraded) <= {"corrupt_history", "no_history", "stale_authors", "unknown_authors"} | {
                "stale_history"
            }
            assert share < 1 or reading.degraded == ("no_history", "stale_authors")
        scene.proxy.heal()
        scene.proxy.reset()
        await scene.whole()

    run(server, work)


def test_an_answer_that_breaks_off_is_no_answer(server: Server) -> None:
    async def work(scene: Scene) -> None:
        scene.proxy.stall("to_client", leak=20)
        for _ in range(4):
            reading = await scene.read()
            assert reading.degraded == LADDER
            assert_known(reading)
        scene.proxy.heal()
        scene.proxy.reset()
        await scene.whole()
        scene.proxy.cut(20, "to_client")
        for _ in range(4):
            assert (await scene.read()).degraded == LADDER
        scene.proxy.heal()
        await scene.whole()

    run(server, work)


def test_a_generation_that_becomes_active_leaves_no_author_of_the_one_before(server: Server) -> None:
    async def work(scene: Scene) -> None:
        await scene.store.switch(await scene.store.new_generation())
        scene.proxy.stall()
        reading = await scene.read()
        assert reading.degraded == ("stale_history", "unknown_authors")

    run(server, work)
