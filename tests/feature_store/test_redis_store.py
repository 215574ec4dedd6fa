"""What only the store in Redis does; what every store does is in test_store_protocol."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator

import numpy as np
import pytest
import redis
from builders import author_updates, users_of_events, views

from feature_store.redis.settings import RedisSettings
from feature_store.redis.store import RedisStore
from feature_store.schema import RecordSchema, default_schema
from feature_store.store import Applied, StoreError
from loadtest.redis_servers import Server, valkey

SCHEMA = default_schema().model_copy(update={"history_length": 3, "history_spare": 2, "author_lives": 2})
QUICK = RedisSettings(pointer_cache_s=0.05, timeout_s=5, wait_ms=100)
SLOW = QUICK.model_copy(update={"pointer_cache_s": 3600.0})

on_both = pytest.mark.parametrize("backend_url", ["redis", "cluster"], indirect=True)
on_one = pytest.mark.parametrize("backend_url", ["redis"], indirect=True)


@pytest.fixture
def server() -> Iterator[Server]:
    """One that a test may ruin."""
    with valkey() as started:
        yield started


def run(url: str, work: Callable[[RedisStore], Awaitable[None]], settings: RedisSettings = QUICK) -> None:
    """`work` with the store, made when it is not there."""

    async def opened() -> None:
        async with RedisStore(url, SCHEMA, True, settings) as store:
            await work(store)

    asyncio.run(opened())


async def ids_of(store: RedisStore, user_id: int) -> list[int]:
    user = (await store.read(user_id, ())).user
    return [] if user is None else user.video["view_id"].tolist()


async def see(store: RedisStore, user_id: int, *view_ids: int) -> Applied:
    """Views that are known at their own id."""
    count = len(view_ids)
    known = {"view_id": view_ids, "event_time": view_ids, "known_after": [0] * count}
    return await store.apply(views(SCHEMA, "video", [user_id] * count, **known))


async def rooms(store: RedisStore, author_id: int, live_id: int | None = None) -> list[int]:
    found = await store.read(0, [author_id], None if live_id is None else np.array([live_id]))
    return found.authors[author_id]["live_id"].tolist() if found.authors else []


async def say(store: RedisStore, at: int, author_id: int, live_id: int) -> None:
    await store.apply(author_updates(SCHEMA, [at], author_id=[author_id], live_id=[live_id]))


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await holds():
            await asyncio.sleep(0.01)


@on_both
def test_a_generation_is_loaded_apart_and_then_switched_to(backend_url: str) -> None:
    async def work(store: RedisStore) -> None:
        async with RedisStore(backend_url, settings=QUICK) as reader:
            await see(store, 1, 1)
            await say(store, 1, 7, 70)
            assert (store.generation, await store.active(), await rooms(reader, 7)) == (1, 1, [70])
            number = await store.new_generation()
            new = store.into(number)
            await see(new, 1, 2, 3)
            await say(new, 1, 7, 71)
            assert (number, new.generation, await ids_of(new, 1), await rooms(new, 7)) == (2, 2, [2, 3], [71])
            assert (await ids_of(store, 1), await ids_of(reader, 1), await rooms(reader, 7)) == ([1], [1], [70])
            await store.switch(number)
            assert (store.generation, await ids_of(store, 1), await rooms(store, 7)) == (2, [2, 3], [71])

            async def has_switched() -> bool:
                return await ids_of(reader, 1) == [2, 3]

            await until(has_switched)
            assert await rooms(reader, 7) == [71]
            with pytest.raises(StoreError, match="generation 2 is the active one"):
                await store.drop(2)
            assert await store.drop(1) == 2
            assert await store.drop(1) == 0
            assert (await ids_of(reader, 1), await reader.users(9)) == ([2, 3], [1])

    run(backend_url, work)


@on_one
def test_only_a_generation_that_was_made_becomes_active(backend_url: str) -> None:
    async def work(store: RedisStore) -> None:
        for number in (0, 2):
            with pytest.raises(StoreError, match=f"no generation {number}; there are 1 to 1"):
                await store.switch(number)
        assert [await store.new_generation() for _ in range(2)] == [2, 3]
        assert await store.active() == 1

    run(backend_url, work)


@on_both
def test_events_go_to_the_generation_that_is_active_when_they_are_merged(backend_url: str) -> None:
    async def work(store: RedisStore) -> None:
        async with RedisStore(backend_url, settings=SLOW) as writer:
            assert await see(writer, 1, 1) == Applied(1, 0)
            await store.switch(await store.new_generation())
            assert writer.generation == 1
            assert await see(writer, 1, 2) == Applied(1, 0)
            assert writer.generation == 2
            assert (await ids_of(store.into(2), 1), await ids_of(store.into(1), 1)) == ([2], [1, 2])
            await see(writer.into(1), 1, 3)
            assert (await ids_of(store.into(2), 1), await ids_of(store.into(1), 1)) == ([2], [1, 2, 3])

    run(backend_url, work, SLOW)


@on_both
def test_a_user_is_erased_from_every_generation(backend_url: str) -> None:
    async def work(store: RedisStore) -> None:
        numbers = [1, await store.new_generation(), await store.new_generation()]
        for number in numbers:
            await see(store.into(number), 1, number)
            await see(store.into(number), 2, number)
        assert await store.delete_user(1, 100)
        assert [await ids_of(store.into(number), 1) for number in numbers] == [[], [], []]
        assert [await ids_of(store.into(number), 2) for number in numbers] == [[1], [2], [3]]
        assert await see(store.into(3), 1, 100, 101) == Applied(1, 1)
        assert not await store.delete_user(5, 100)

    run(backend_url, work)


@on_one
def test_namespaces_are_apart(backend_url: str) -> None:
    async def work(store: RedisStore) -> None:
        await see(store, 1, 1)
        await store.delete_user(2, 5)
        longer = RedisStore(f"{backend_url}-2", SCHEMA, True, QUICK)  # a name that starts with the other one
        async with longer:
            await see(longer, 1, 9)
            await see(longer, 2, 5)
            assert (await ids_of(store, 1), await ids_of(longer, 1)) == ([1], [9])
            counts = [(stats.users, stats.erased) for stats in (await store.stats(), await longer.stats())]
            assert counts == [(1, 1), (2, 0)]
            await longer.switch(await longer.new_generation())
            assert await longer.drop(1) == 2
            assert await ids_of(store, 1) == [1]

    run(backend_url, work)


@on_both
def test_users_and_tombstones_live_as_long_as_they_were_told(backend_url: str) -> None:
    async def ttl(store: RedisStore, key: str) -> int:
        return int(await store.link.client.ttl(key))

    async def work(store: RedisStore) -> None:
        await see(store, 1, 1)
        await store.put_users(
            users_of_events(SCHEMA, [2], views(SCHEMA, "video", [2], view_id=[1], event_time=[1]).video, none())
        )
        await store.delete_user(3, 5)
        assert [await ttl(store, store.keys.user(1, user)) in (99, 100) for user in (1, 2)] == [True, True]
        assert await ttl(store, store.keys.tombstone(3)) in (199, 200)

    def none() -> np.ndarray:
        return np.empty(0, SCHEMA.dtype("live"))

    run(backend_url, work, QUICK.model_copy(update={"user_ttl_s": 100, "tombstone_ttl_s": 200}))


@on_both
def test_functions_that_a_server_lost_are_loaded_again(backend_url: str) -> None:
    async def work(store: RedisStore) -> None:
        await see(store, 1, 1)
        for server in await store.link.primaries():
            await server.function_flush()
        assert await see(store, 1, 2) == Applied(1, 0)
        for server in await store.link.primaries():
            await server.function_flush()
        assert await store.delete_user(1, 0)

    run(backend_url, work)


@on_one
def test_damaged_values_are_missing_and_told_once(backend_url: str, caplog: pytest.LogCaptureFixture) -> None:
    async def work(store: RedisStore) -> None:
        client, whole = store.link.client, views(SCHEMA, "video", [1], view_id=[1], event_time=[1]).video.tobytes()
        damage = {
            1: {"v": whole[:-1], "n": 1},
            2: {"l": whole[:-1], "n": 1},
            3: {"a": b"1", "n": 1},
            4: {"v": whole},
            5: {"n": b"many"},
        }
        for user, fields in damage.items():
            await client.hset(store.keys.user(1, user), mapping=fields)
        await client.set(store.keys.author(1, 6), b"12345")
        caplog.set_level(logging.WARNING)
        for _ in range(2):
            for user in damage:
                answer = await store.read(user, [6])
                assert (answer.user, answer.authors, answer.corrupt) == (None, {}, True)
        told = [record.getMessage() for record in caplog.records]
        assert [sum(f":{{{user}}}:" in line for line in told) for user in damage] == [1] * 5
        assert sum(":a1:6:" in line for line in told) == 1
        assert [row async for rows in store.scan_users() for row in rows] == []
        assert [row async for rows in store.scan_authors() for row in rows] == []
        for user in damage:
            await see(store, user, 8)
            assert 8 in await ids_of(store, user)
        await say(store, 1, 6, 60)
        assert await rooms(store, 6) == [60]

    run(backend_url, work)


@on_both
def test_authors_are_remembered_until_another_room_is_asked_for(backend_url: str) -> None:
    async def work(store: RedisStore) -> None:
        async with RedisStore(backend_url, settings=QUICK) as writer:
            assert await rooms(store, 7) == []
            await say(writer, 1, 7, 70)
            assert (await rooms(store, 7), await rooms(writer, 7)) == ([], [70])
            await say(store, 2, 7, 71)  # what a store wrote it does not pass over
            assert await rooms(store, 7) == [70, 71]
            await say(writer, 3, 7, 72)
            assert (await rooms(store, 7), await rooms(store, 7, 70)) == ([70, 71], [70, 71])
            assert await rooms(store, 7, 72) == [71, 72]
            await say(writer, 4, 7, 73)
            asked = await asyncio.gather(*(store.read(user, range(300), np.full(300, 73)) for user in range(4)))
            assert [list(answer.authors) for answer in asked] == [[7]] * 4
            assert asked[3].authors[7]["live_id"].tolist() == [72, 73]

    run(backend_url, work)


def test_a_store_serves_one_event_loop_after_another(server: Server) -> None:
    store = RedisStore(server.url, SCHEMA, True, QUICK)

    async def work(view: int) -> list[int]:
        await see(store, 1, view)
        return await ids_of(store, 1)

    assert [asyncio.run(work(view)) for view in (1, 2)] == [[1], [1, 2]]

    async def switched() -> int:
        await store.switch(await store.new_generation())
        return store.generation

    assert asyncio.run(switched()) == 2
    with server.client() as other:
        other.set(store.keys.active, 1)

    async def first_read() -> list[int]:
        await asyncio.sleep(0.06)  # more than the pointer may be old
        return await ids_of(store, 1)

    assert asyncio.run(first_read()) == [1, 2]
    asyncio.run(store.close())


def test_a_reader_keeps_reading_while_the_pointer_cannot_be_read(server: Server) -> None:
    async def work(store: RedisStore) -> None:
        await see(store, 1, 1)
        await store.link.client.delete(store.keys.active)
        await asyncio.sleep(0.2)
        assert await ids_of(store, 1) == [1]
        with pytest.raises(StoreError, match="active is gone"):
            await store.active()
        await store.link.client.set(store.keys.active, 2)

        async def has_followed() -> bool:
            return store.generation == 2

        await until(has_followed)

    run(server.url, work)


def test_a_full_server_refuses_events_and_still_answers_and_erases(server: Server) -> None:
    async def work(store: RedisStore) -> None:
        await see(store, 1, 1)
        await store.link.client.config_set("maxmemory", 1_000_000)
        with pytest.raises(StoreError, match="memory is full"):
            await see(store, 1, 2)
        assert await ids_of(store, 1) == [1]
        assert await store.delete_user(1, 5)
        await store.link.client.config_set("maxmemory", 0)
        assert await see(store, 1, 5, 6) == Applied(1, 1)

    run(server.url, work)


def test_a_user_is_read_although_authors_cannot_be(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    async def seed(store: RedisStore) -> None:
        await see(store, 1, 1)
        await say(store, 1, 7, 70)

    run(server.url, seed)
    with server.client() as client:
        keys = " ".join(f"~farm:default:{kind}" for kind in ("meta", "active", "u1:*"))
        client.execute_command(f"ACL SETUSER some on >secret {keys} +@all")

    async def work() -> None:
        url = server.url.replace("//", "//some:secret@")
        async with RedisStore(url, settings=QUICK) as store:
            answer = await store.read(1, [7])
            assert answer.user is not None
            assert answer.authors == {}
            with pytest.raises(StoreError, match="lacks a permission"):
                await see(store, 1, 2)

    asyncio.run(work())
    assert "answering without 1 authors" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda client: client.delete("farm:default:meta"), "no store at .*farm materialize"),
        (lambda client: client.delete("farm:default:active"), "active is gone"),
        (lambda client: client.hset("farm:default:meta", "format", "2"), "it has format 2, this version reads 1"),
    ],
)
def test_what_cannot_be_opened_is_said_in_one_line(
    server: Server, change: Callable[[redis.Redis], None], message: str
) -> None:
    RedisStore(server.url, SCHEMA, True, QUICK)
    with server.client() as client:
        change(client)
    with pytest.raises(StoreError, match=message) as error:
        RedisStore(server.url, settings=QUICK)
    assert "\n" not in str(error.value)


def test_of_two_who_make_a_store_the_first_decides(server: Server) -> None:
    async def both() -> list[RedisStore | BaseException]:
        other = SCHEMA.model_copy(update={"history_length": 4})
        work = (asyncio.to_thread(RedisStore, server.url, schema, True, QUICK) for schema in (SCHEMA, other) * 3)
        return await asyncio.gather(*work, return_exceptions=True)

    opened = [store for store in asyncio.run(both()) if isinstance(store, RedisStore)]
    assert len(opened) == 3
    schemas: list[RecordSchema] = [store.schema for store in opened]
    assert schemas[0] == schemas[1] == schemas[2]


@on_both
def test_stats_tell_what_a_user_costs(backend_url: str) -> None:
    async def work(store: RedisStore) -> None:
        for user in range(20):
            await see(store, user, 1, 2, 3)
        stats = await store.stats()
        assert (stats.users, stats.authors, stats.erased) == (20, 0, 0)
        assert stats.size_bytes > 100_000
        size = stats.detail["bytes_per_user"]
        assert isinstance(size, int)
        assert 150 < size < 600
        assert (stats.detail["bytes_per_author"], stats.detail["generation"]) == (0, 1)
        assert str(stats.detail["version"]).startswith("Valkey")

    run(backend_url, work)


@on_one
def test_closing_ends_whatever_the_pointer_is_doing(backend_url: str) -> None:
    """A cancellation may be swallowed on its way (Python 3.11); closing must end all the same."""

    async def work(store: RedisStore) -> None:
        async with asyncio.timeout(60):
            for number in range(100):
                await store.read(1, [])
                await asyncio.sleep(0.0005 * (number % 7))
                for _ in range(number % 5):
                    await asyncio.sleep(0)
                await store.close()

    run(backend_url, work, QUICK.model_copy(update={"pointer_cache_s": 0.0005}))


@on_one
@pytest.mark.parametrize("reply", [[b"a"], [b"a", 3], 7, None], ids=["short", "of another kind", "a number", "nothing"])
def test_an_answer_to_another_question_is_no_author(
    backend_url: str, reply: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a connection gives it whose replies are displaced by one."""

    async def work(store: RedisStore) -> None:
        plain = store.link.read

        async def displaced(*command: object) -> object:
            return reply if command[0] == "MGET" else await plain(*command)

        await say(store, 1, 5, 50)
        monkeypatch.setattr(store.link, "read", displaced)
        found = await store.read(0, [5, 6])
        assert not found.authors
        monkeypatch.undo()
        assert await rooms(store, 5) == [50]

    run(backend_url, work)
