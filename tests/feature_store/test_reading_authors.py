"""Authors that are kept past their time, for when the store does not answer."""

from __future__ import annotations

import numpy as np
import pytest
from test_author_cache import World, rooms, run

from feature_store.redis.author_cache import AuthorCache
from feature_store.schema import RecordSchema


@pytest.fixture
def world(schema: RecordSchema) -> World:
    return World(schema)


def keeping(world: World, size: int = 100) -> AuthorCache:
    """Fresh for 30 s, kept for 100 s."""
    return AuthorCache(world.fetch, size, 30, 2, lambda: world.now, outdated_s=100)


def kept(cache: AuthorCache, *authors: int) -> dict[int, list[int]]:
    return {author: records["live_id"].tolist() for author, records in cache.outdated(authors).items()}


def test_the_outdated_are_kept_apart_and_for_their_time(world: World) -> None:
    async def scenario() -> None:
        cache = keeping(world)
        world.rooms = {1: [10], 2: [20, 21], 3: [30]}
        await rooms(cache, [1, 2])
        world.now = 129.9
        assert kept(cache, 1, 2, 3) == {}
        await rooms(cache, [3])
        world.now = 130.0
        assert kept(cache, 2, 1, 3, 4) == {2: [20, 21], 1: [10]}
        found, wanted = cache.look_up(np.array([1, 2, 3]), None)
        assert (list(found), [author for author, _ in wanted]) == ([3], [1, 2])
        assert len(cache) == 1
        world.now = 199.9
        assert kept(cache, 1, 2, 3) == {1: [10], 2: [20, 21], 3: [30]}
        world.now = 200.0
        assert kept(cache, 1, 2, 3) == {3: [30]}

    run(scenario)


def test_what_the_store_says_takes_the_place_of_the_outdated(world: World) -> None:
    async def scenario() -> None:
        cache = keeping(world)
        world.rooms = {author: [10 * author] for author in range(1, 6)}
        await rooms(cache, [1, 2, 3])
        world.now = 140.0
        world.rooms = {1: [11]}
        assert await rooms(cache, [1, 2]) == {1: [11]}
        assert kept(cache, 1, 2, 3) == {3: [30]}
        world.now = 171.0
        assert kept(cache, 1, 2, 3) == {1: [11], 3: [30]}
        cache.discard([1])
        assert kept(cache, 1, 3) == {3: [30]}
        cache.purge()
        assert kept(cache, 3) == {}
        world.rooms = {3: [33], 6: [60]}
        assert await rooms(cache, [3, 6]) == {3: [33], 6: [60]}

    run(scenario)


def test_the_outdated_leave_first_when_there_are_too_many(world: World) -> None:
    async def scenario() -> None:
        cache = keeping(world, size=4)
        world.rooms = {author: [10 * author, 10 * author + 1] for author in range(1, 20)}
        await rooms(cache, [1])
        world.now = 101.0
        await rooms(cache, [2, 3])
        world.now = 131.0
        assert kept(cache, 1, 2, 3) == {1: [10, 11], 2: [20, 21], 3: [30, 31]}
        await rooms(cache, [4, 5])
        assert kept(cache, 1, 2, 3) == {2: [20, 21], 3: [30, 31]}
        await rooms(cache, [6, 7])
        assert kept(cache, 1, 2, 3) == {}
        assert await rooms(cache, [4, 5, 6, 7]) == {author: world.rooms[author] for author in (4, 5, 6, 7)}
        await rooms(cache, [8])
        assert len(cache) == 4
        assert len(world.asked) == 5

    run(scenario)


def test_the_age_counts_from_the_reading_however_late_it_is_looked_at(world: World) -> None:
    async def scenario() -> None:
        cache = keeping(world)
        world.rooms = {1: [10], 2: [20]}
        await rooms(cache, [1])
        world.now = 101.0
        await rooms(cache, [2])
        world.now = 200.5
        assert kept(cache, 1, 2) == {2: [20]}

    run(scenario)


def test_a_cache_that_keeps_nothing_past_its_time(world: World) -> None:
    async def scenario() -> None:
        cache = world.cache()
        world.rooms = {1: [10]}
        await rooms(cache, [1])
        world.now = 130.0
        assert kept(cache, 1) == {}

    run(scenario)
