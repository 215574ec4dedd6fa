from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator

import numpy as np
import pytest

from feature_store.events.batch import EventBatch, EventBatchError
from feature_store.events.dead_letters import TTL_S, DeadLetter, Replay
from feature_store.events.log import EventLog
from feature_store.records import records_from_columns
from feature_store.redis.link import RedisLink
from feature_store.redis.settings import RedisSettings
from feature_store.schema import RecordSchema
from loadtest.redis_servers import Server, valkey

Make = Callable[..., np.ndarray]
Work = Callable[[EventLog], Awaitable[None]]
ACCEPTED_MS = 1_700_000_000_123


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with valkey() as one:
        yield one


@pytest.fixture
def run(schema: RecordSchema, server: Server) -> Callable[[Work], None]:
    """Run something with a log on an empty server."""

    async def scenario(work: Work) -> None:
        link = RedisLink.open(server.url, RedisSettings(partitions=2))
        try:
            await work(EventLog(link, schema))
        finally:
            await link.aclose()

    def run_it(work: Work) -> None:
        with server.client() as client:
            client.flushall()
        asyncio.run(scenario(work))

    return run_it


@pytest.fixture
def batch(schema: RecordSchema, make_events: Make) -> EventBatch:
    """Four views of the users 1, 2, 1 and 3, and attributes of user 1."""
    none = EventBatch.empty(schema)
    users = records_from_columns(schema, "user", {"user_id": [1], "activity_group": [2]})
    views = np.array([1, 2, 1, 3]), make_events("video", 4)
    return EventBatch(*views, none.live_users, none.live, none.authors, none.authors_at, users, np.array([ACCEPTED_MS]))


def test_a_letter_is_listed_as_it_was_added(
    run: Callable[[Work], None], schema: RecordSchema, batch: EventBatch
) -> None:
    async def work(log: EventLog) -> None:
        letters = log.dead_letters
        assert await letters.list() == []
        await letters.add("it was bad", "3/170-1", ACCEPTED_MS, b"\x00\xff")
        await letters.add("worse", "0/180-0", 0, batch.to_bytes(schema))
        newest, oldest = await letters.list()
        assert oldest == DeadLetter(oldest.id, "it was bad", "3/170-1", ACCEPTED_MS, b"\x00\xff")
        assert newest == DeadLetter(newest.id, "worse", "0/180-0", 0, batch.to_bytes(schema))
        assert len(newest.batch(schema)) == len(batch)
        with pytest.raises(EventBatchError, match="2 bytes are less than a header"):
            oldest.batch(schema)
        assert await letters.list(limit=1) == [newest]
        assert await letters.count() == 2
        assert 0 < await log.client.ttl("farm:default:dead") <= TTL_S

    run(work)


def test_replay_appends_what_can_be_read_and_keeps_the_rest(
    run: Callable[[Work], None], schema: RecordSchema, batch: EventBatch
) -> None:
    async def work(log: EventLog) -> None:
        letters = log.dead_letters
        for value in (batch.to_bytes(schema), b"junk", batch.to_bytes(schema)):
            await letters.add("why", "0/1-0", ACCEPTED_MS, value)
        assert await letters.replay() == Replay(replayed=2, unreadable=1)
        assert [letter.value for letter in await letters.list()] == [b"junk"]
        users = [user async for some in log.read_from({}) for user in some.batch.video_users.tolist()]
        assert sorted(users) == [1, 1, 1, 1, 2, 2, 3, 3]
        assert await letters.replay() == Replay(replayed=0, unreadable=1)

    run(work)


def test_some_are_replayed_or_discarded_by_id(
    run: Callable[[Work], None], schema: RecordSchema, batch: EventBatch
) -> None:
    async def work(log: EventLog) -> None:
        letters = log.dead_letters
        for number in range(4):
            await letters.add(str(number), "0/1-0", ACCEPTED_MS, batch.to_bytes(schema))
        ids = [letter.id for letter in reversed(await letters.list())]
        assert await letters.replay([ids[1]]) == Replay(1, 0)
        assert await letters.discard([ids[3]]) == 1
        assert [letter.reason for letter in await letters.list()] == ["2", "0"]
        for absent in (ids[1], "nonsense", "5", "99999999999999999999-0"):
            with pytest.raises(ValueError, match=f"no dead letter {absent}; `farm ingest --dead-letters` lists them"):
                await letters.discard([absent])
        assert await letters.discard() == 2
        assert await letters.discard() == 0

    run(work)


def test_an_erased_user_leaves_the_letters(
    run: Callable[[Work], None], schema: RecordSchema, batch: EventBatch
) -> None:
    async def work(log: EventLog) -> None:
        letters = log.dead_letters
        only_1 = batch.select(video=batch.video_users == 1)
        for reason, value in (
            ("all", batch.to_bytes(schema)),
            ("only 1", only_1.to_bytes(schema)),
            ("others", batch.without_user(1).to_bytes(schema)),
            ("junk", b"junk"),
        ):
            await letters.add(reason, "0/1-0", ACCEPTED_MS, value)
        assert await letters.erase_user(1) == 2
        left = {letter.reason: letter for letter in await letters.list()}
        assert set(left) == {"all", "others", "junk"}
        for reason in ("all", "others"):
            rest = left[reason].batch(schema)
            assert rest.video_users.tolist() == [2, 3]
            assert len(rest.users) == 0
        assert (left["all"].entry, left["all"].accepted_ms) == ("0/1-0", ACCEPTED_MS)
        assert await letters.erase_user(1) == 0

    run(work)


def test_letters_expire(run: Callable[[Work], None]) -> None:
    async def work(log: EventLog) -> None:
        old = int(1000 * (time.time() - TTL_S)) - 10_000
        fields = {"r": "old", "e": "0/1-0", "t": 1, "b": b""}
        await log.client.xadd("farm:default:dead", fields, id=f"{old}-0")
        assert await log.dead_letters.expire() == 1
        await log.client.xadd("farm:default:dead", fields, id=f"{old + 60_000}-0")
        await log.dead_letters.add("new", "0/2-0", 1, b"")
        assert [letter.reason for letter in await log.dead_letters.list()] == ["new", "old"]

    run(work)
