"""The cache of authors against a counted fetch and a clock that stands still until it is moved."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest
from prometheus_client import REGISTRY

from feature_store.records import records_from_columns
from feature_store.redis.author_cache import AuthorCache
from feature_store.schema import MISSING, RecordSchema
from feature_store.throttle import Throttle


class World:
    """The store of authors that a cache reads, and its clock."""

    def __init__(self, schema: RecordSchema) -> None:
        self.schema = schema
        self.rooms: dict[int, list[int]] = {}
        self.asked: list[list[int]] = []
        self.now = 100.0
        self.gate: asyncio.Event | None = None
        self.error: Exception | None = None

    async def fetch(self, authors: list[int]) -> dict[int, np.ndarray]:
        self.asked.append(sorted(authors))
        found = {author: self.records(author) for author in authors if author in self.rooms}
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        return found

    def records(self, author: int) -> np.ndarray:
        lives = self.rooms[author]
        return records_from_columns(self.schema, "author", {"author_id": [author] * len(lives), "live_id": lives})

    def cache(self, size: int = 100) -> AuthorCache:
        return AuthorCache(self.fetch, size, ttl_s=30, negative_ttl_s=2, clock=lambda: self.now)


@pytest.fixture
def world(schema: RecordSchema) -> World:
    return World(schema)


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 10))


async def rooms(cache: AuthorCache, authors: list[int], lives: list[int] | None = None) -> dict[int, list[int]]:
    found = await cache.get(np.array(authors, np.int64), None if lives is None else np.array(lives))
    return {author: records["live_id"].tolist() for author, records in found.items()}


def test_authors_are_remembered_for_their_time(world: World) -> None:
    async def scenario() -> None:
        cache = world.cache()
        world.rooms = {1: [10], 2: [20, 21]}
        assert await rooms(cache, [1, 2, 1]) == {1: [10], 2: [20, 21]}
        world.rooms[1] = [11]
        world.now = 129.99
        assert await rooms(cache, [2, 1]) == {1: [10], 2: [20, 21]}
        assert world.asked == [[1, 2]]
        world.now = 130.0
        assert await rooms(cache, [1]) == {1: [11]}
        assert world.asked == [[1, 2], [1]]
        assert len(cache) == 1

    run(scenario)


def test_only_what_is_not_remembered_is_fetched(world: World) -> None:
    async def scenario() -> None:
        cache = world.cache()
        world.rooms = {1: [10], 2: [20], 3: [30]}
        await rooms(cache, [1])
        assert await rooms(cache, [3, 1, 2]) == {1: [10], 2: [20], 3: [30]}
        assert world.asked == [[1], [2, 3]]
        assert await rooms(cache, []) == {}

    run(scenario)


def test_unknown_authors_are_remembered_for_a_shorter_time(world: World) -> None:
    async def scenario() -> None:
        cache = world.cache()
        for now, fetches in ((100.0, 1), (101.9, 1), (102.0, 2), (103.0, 2)):
            world.now = now
            assert await rooms(cache, [7], [70]) == {}
            assert await rooms(cache, [7]) == {}
            assert len(world.asked) == fetches
        world.rooms[7] = [70]
        world.now = 104.0
        assert await rooms(cache, [7]) == {7: [70]}

    run(scenario)


def test_a_room_that_is_not_remembered_is_fetched_once_in_a_while(world: World) -> None:
    async def scenario() -> None:
        cache = world.cache()
        world.rooms = {1: [10, 11], 2: [20]}
        await rooms(cache, [1, 2])
        assert await rooms(cache, [1, 1, 1, 2], [10, 11, MISSING, 20]) == {1: [10, 11], 2: [20]}
        assert len(world.asked) == 1
        for now, fetches in ((100.0, 2), (101.9, 2), (102.0, 3)):
            world.now = now
            assert await rooms(cache, [1, 2, 1], [12, 20, 12]) == {1: [10, 11], 2: [20]}
            assert len(world.asked) == fetches
        assert world.asked[1:] == [[1], [1]]
        world.rooms[1] = [11, 13]
        assert await rooms(cache, [1], [13]) == {1: [11, 13]}
        assert await rooms(cache, [1], [13]) == {1: [11, 13]}
        assert len(world.asked) == 4

    run(scenario)


def test_a_newest_room_without_an_id_is_no_room_asked_for(world: World) -> None:
    async def scenario() -> None:
        cache = world.cache()
        world.rooms = {1: [MISSING]}
        for _ in range(2):
            assert await rooms(cache, [1], [MISSING]) == {1: [MISSING]}
        assert await rooms(cache, [1], [5]) == {1: [MISSING]}
        assert len(world.asked) == 2

    run(scenario)


def test_the_oldest_leave_when_there_are_too_many(world: World) -> None:
    async def scenario() -> None:
        cache = world.cache(size=2)
        world.rooms = {author: [author * 10] for author in (1, 2, 3)}
        for author in (1, 2, 3):
            await rooms(cache, [author])
        assert len(cache) == 2
        await rooms(cache, [2, 3])
        assert len(world.asked) == 3
        assert await rooms(cache, [1, 2, 3, 1]) == {1: [10], 2: [20], 3: [30]}
        assert world.asked[3:] == [[1]]
        for unknown in (7, 8, 9, 7):
            await rooms(cache, [unknown])
        assert world.asked[4:] == [[7], [8], [9], [7]]

    run(scenario)


def test_requests_wait_for_a_fetch_under_way(world: World) -> None:
    async def scenario() -> None:
        cache = world.cache()
        world.rooms = {1: [10], 2: [20]}
        world.gate = asyncio.Event()
        waiting = [asyncio.ensure_future(rooms(cache, authors)) for authors in ([1], [1, 2], [2, 1], [1])]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.sleep(0)
        world.gate.set()
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(answers[0], asyncio.CancelledError)
        assert answers[1:] == [{1: [10], 2: [20]}, {1: [10], 2: [20]}, {1: [10]}]
        assert world.asked == [[1], [2]]

    run(scenario)


def test_a_failure_reaches_all_who_wait_and_is_not_remembered(world: World) -> None:
    async def scenario() -> None:
        cache = world.cache()
        world.rooms = {1: [10]}
        world.error = ConnectionError("gone")
        answers = await asyncio.gather(*(rooms(cache, [1]) for _ in range(3)), return_exceptions=True)
        assert answers == [world.error] * 3
        world.error = None
        assert await rooms(cache, [1]) == {1: [10]}
        assert world.asked == [[1], [1]]

    run(scenario)


@pytest.mark.parametrize("forget", [AuthorCache.purge, lambda cache: cache.discard([1, 7])])
def test_what_was_dropped_is_not_remembered_again_by_an_older_fetch(
    world: World, forget: Callable[[AuthorCache], None]
) -> None:
    async def scenario() -> None:
        cache = world.cache()
        world.rooms = {1: [10]}
        assert await rooms(cache, [1, 7], [12, 70]) == {1: [10]}
        world.rooms = {1: [11], 7: [70]}
        forget(cache)
        assert await rooms(cache, [1, 7]) == {1: [11], 7: [70]}
        forget(cache)
        world.gate = asyncio.Event()
        older = asyncio.ensure_future(rooms(cache, [1]))
        await asyncio.sleep(0.01)
        world.rooms = {1: [12]}
        forget(cache)
        newer = asyncio.ensure_future(rooms(cache, [1]))
        await asyncio.sleep(0.01)
        world.gate.set()
        assert await older == {1: [11]}
        assert await newer == {1: [12]}
        assert await rooms(cache, [1]) == {1: [12]}
        assert world.asked == [[1, 7], [1, 7], [1], [1]]

    run(scenario)


def test_the_rest_stays_when_some_are_dropped(world: World) -> None:
    async def scenario() -> None:
        cache = world.cache()
        world.rooms = {1: [10], 2: [20]}
        await rooms(cache, [1, 2, 8, 9])
        cache.discard([1, 9, 5])
        await rooms(cache, [1, 2, 8, 9])
        assert world.asked == [[1, 2, 8, 9], [1, 9]]

    run(scenario)


def test_metrics(world: World) -> None:
    def counts() -> list[float]:
        names = [("lookups_total", {"result": result}) for result in ("hit", "absent", "miss")]
        names += [("age_seconds_count", {}), ("age_seconds_sum", {}), ("authors", {})]
        return [REGISTRY.get_sample_value(f"farm_author_cache_{name}", labels) or 0.0 for name, labels in names]

    async def scenario() -> None:
        cache = world.cache()
        world.rooms = {1: [10], 2: [20]}
        before = counts()
        await rooms(cache, [1, 2, 3])
        assert np.subtract(counts(), before)[:4].tolist() == [0, 0, 3, 0]
        assert counts()[5] == 2
        world.now += 1.5
        cache._throttle = Throttle(20.0, lambda: world.now)
        before = counts()
        await rooms(cache, [1, 2])
        assert np.subtract(counts(), before)[:5].tolist() == [2, 0, 0, 1, 1.5]
        await rooms(cache, [1, 2, 3], [11, 20, MISSING])  # of the first, another room
        assert np.subtract(counts(), before)[:4].tolist() == [3, 1, 1, 1]
        cache.discard([2])
        assert counts()[5] == 1
        cache.purge()
        assert counts()[5] == 0

    run(scenario)
