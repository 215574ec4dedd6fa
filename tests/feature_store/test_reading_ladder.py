"""The steps of the ladder over stores that fail when they are told to, with a clock that is moved by hand."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import users_of_events
from prometheus_client import REGISTRY

from feature_store.authors import Authors
from feature_store.lmdb_store import LmdbStore
from feature_store.reading.parts import PartedStore
from feature_store.reading.reader import LadderReader, Reading, StepForbidden
from feature_store.reading.settings import ReadingSettings
from feature_store.records import UserRecord, empty_user, records_from_columns
from feature_store.schema import MISSING, RecordSchema, default_schema
from feature_store.store import FeatureStore, StoreAnswer, StoreError

SCHEMA = default_schema()
SETTINGS = ReadingSettings(budget_ms=20, failures_in_row=3, last_good_age_s=60, probe_interval_s=1)


class Remote(PartedStore):
    """A store on the other side of a network that is this test's."""

    def __init__(self) -> None:
        self.users: dict[int, UserRecord] = {7: empty_user(SCHEMA)}
        self.fresh: dict[int, int] = {}  # room by author
        self.old: dict[int, int] = {}
        self.there: dict[int, int] = {}  # in the server
        self.user_error: Exception | None = None
        self.author_error: Exception | None = None
        self.silent_user = self.silent_authors = self.corrupt = False
        self.asked = 0
        self.outdated_s = 0.0

    def keep_outdated_authors(self, age_s: float) -> None:
        self.outdated_s = age_s

    def look_up_authors(
        self, author_ids: Sequence[int] | np.ndarray, live_ids: np.ndarray | None
    ) -> tuple[Authors, list[tuple[int, int]]]:
        ids = np.asarray(author_ids).tolist()
        lives = [MISSING] * len(ids) if live_ids is None else live_ids.tolist()
        pairs = list(zip(ids, lives, strict=True))
        return packed(self.fresh, ids), [
            (a, live) for a, live in pairs if a not in self.fresh or live not in (MISSING, self.fresh[a])
        ]

    async def fetch_authors(self, wanted: list[tuple[int, int]]) -> Authors:
        if self.silent_authors:
            await asyncio.Event().wait()
        if self.author_error is not None:
            raise self.author_error
        return packed(self.there, [author for author, _ in wanted])

    def outdated_authors(self, author_ids: Sequence[int]) -> Authors:
        return packed(self.old, author_ids)

    async def read_user(self, user_id: int) -> tuple[UserRecord | None, bool]:
        self.asked += 1
        await asyncio.sleep(0)
        if self.silent_user:
            await asyncio.Event().wait()
        if self.user_error is not None:
            raise self.user_error
        return (None, True) if self.corrupt else (self.users.get(user_id), False)


def packed(rooms: dict[int, int], author_ids: Sequence[int]) -> Authors:
    known = [author for author in author_ids if author in rooms]
    columns = {"author_id": known, "live_id": [rooms[author] for author in known]}
    records = records_from_columns(SCHEMA, "author", columns)
    return Authors.of({author: records[row : row + 1] for row, author in enumerate(known)})


class World:
    """A reader of a remote store, and its clock."""

    def __init__(self, settings: ReadingSettings = SETTINGS) -> None:
        self.store, self.now = Remote(), 1000.0
        store: Any = self.store  # of a store it is only what a reading uses
        self.reader = LadderReader(store, settings, lambda: self.now)

    async def read(self, *authors: int, user: int = 7, within_s: float | None = None) -> Reading:
        return await self.reader.read(user, np.array(authors, np.int64), None, within_s)

    async def told(self, *authors: int, user: int = 7) -> tuple[tuple[str, ...], str]:
        reading = await self.read(*authors, user=user)
        return reading.degraded, reading.cause


def run(scenario: Callable[[World], Coroutine[Any, Any, None]], settings: ReadingSettings = SETTINGS) -> None:
    async def limited() -> None:
        async with asyncio.timeout(10):
            await scenario(World(settings))

    asyncio.run(limited())


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def rooms(reading: Reading) -> dict[int, list[int]]:
    return {author: lives["live_id"].tolist() for author, lives in reading.found.authors.items()}


def test_a_healthy_store_is_just_read() -> None:
    async def scenario(world: World) -> None:
        before = metric("farm_readings_total", result="whole")
        world.store.fresh, world.store.there = {1: 10}, {2: 20}
        reading = await world.read(1, 2, 3)
        assert reading.found == StoreAnswer(world.store.users[7], reading.found.authors, False)
        assert (rooms(reading), reading.degraded, reading.cause) == ({1: [10], 2: [20]}, (), "")
        assert await world.told(user=8) == ((), "")
        assert metric("farm_readings_total", result="whole") == before + 2
        assert world.store.outdated_s == SETTINGS.stale_author_age_s

    run(scenario)


@pytest.mark.parametrize("cause", ["slow", "down"])
def test_without_an_answer_the_user_is_as_last_read_then_nothing(cause: str) -> None:
    async def scenario(world: World) -> None:
        known = (await world.read()).found.user
        world.store.silent_user = cause == "slow"
        world.store.user_error = StoreError("gone") if cause == "down" else None
        world.now += 60.0
        reading = await world.read()
        assert reading == (StoreAnswer(known, {}, False), ("stale_history",), cause)
        assert await world.told(user=8) == (("no_history",), cause)
        world.now += 0.01
        assert await world.told() == (("no_history",), cause)

    run(scenario)


def test_a_user_that_the_store_has_no_more_is_not_given_from_memory() -> None:
    async def scenario(world: World) -> None:
        await world.read()
        del world.store.users[7]
        await world.read()
        world.store.user_error = StoreError("gone")
        assert await world.told() == (("no_history",), "down")

    run(scenario)


def test_a_damaged_record_is_missing_and_counted_and_says_nothing_of_the_store() -> None:
    async def scenario(world: World) -> None:
        await world.read()
        world.store.corrupt = True
        before = metric("farm_store_corrupt_records_total", record="user")
        for _ in range(10):
            assert await world.read() == (StoreAnswer(None, {}, True), ("corrupt_history",), "corrupt")
        assert metric("farm_store_corrupt_records_total", record="user") == before + 10
        assert world.reader.breaker.state == "closed"

    run(scenario)


@pytest.mark.parametrize("cause", ["slow", "down"])
def test_authors_that_do_not_come_are_those_of_before_then_unknown(cause: str) -> None:
    async def scenario(world: World) -> None:
        store = world.store
        store.fresh, store.old = {1: 10}, {2: 20}
        store.silent_authors = cause == "slow"
        store.author_error = StoreError("gone") if cause == "down" else None
        for authors, words, known in (
            ((1,), (), {1: [10]}),
            ((1, 2), ("stale_authors",), {1: [10], 2: [20]}),
            ((3, 3), ("unknown_authors",), {}),
            ((1, 2, 3), ("stale_authors", "unknown_authors"), {1: [10], 2: [20]}),
        ):
            reading = await world.read(*authors)
            assert (reading.degraded, reading.cause) == (words, cause if words else "")
            assert rooms(reading) == known
            assert reading.found.user is store.users[7]
        other_room = await world.reader.read(7, np.array([1]), np.array([11]), None)
        assert (rooms(other_room), other_room.degraded) == ({1: [10]}, ("stale_authors",))
        assert world.reader.breaker.state == "closed"

    run(scenario)


def test_authors_that_came_are_used_though_the_user_did_not() -> None:
    async def scenario(world: World) -> None:
        world.store.there = {2: 20}
        world.store.silent_user = True
        reading = await world.read(2, 3)
        assert (rooms(reading), reading.degraded, reading.cause) == ({2: [20]}, ("no_history",), "slow")

    run(scenario)


def test_a_store_that_keeps_failing_is_left_alone_and_tried_by_one(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        store = world.store
        store.fresh, store.old = {1: 10}, {2: 20}
        await world.read()
        store.user_error = StoreError("store x: connection refused")
        for _ in range(3):
            assert await world.told() == (("stale_history",), "down")
        asked = store.asked
        for _ in range(5):
            assert await world.told(1, 2, 3) == (("stale_history", "stale_authors", "unknown_authors"), "open")
        assert store.asked == asked
        assert metric("farm_store_circuit", state="open") == 1
        world.now += 1.0
        store.user_error, store.silent_user = None, True
        answers = await asyncio.gather(*(world.told() for _ in range(4)))
        assert sorted(cause for _, cause in answers) == ["open", "open", "open", "slow"]
        assert store.asked == asked + 1
        world.now += 1.0
        store.silent_user = False
        assert await world.told() == ((), "")
        assert await world.told() == ((), "")
        assert metric("farm_store_circuit", state="closed") == 1

    caplog.set_level(logging.WARNING, "feature_store.reading")
    run(scenario)
    assert [record.message for record in caplog.records] == [
        "answering without the store: store x: connection refused",
        "the store is left alone, and tried now and then: store x: connection refused",
        "the store answers again",
    ]


def test_a_request_with_no_time_says_nothing_of_the_store() -> None:
    async def scenario(world: World) -> None:
        world.store.silent_user = True
        for _ in range(10):
            reading = await world.read(within_s=0.004)
            assert (reading.degraded, reading.cause) == (("no_history",), "slow")
        assert world.reader.breaker.state == "closed"
        for _ in range(3):
            await world.read(within_s=0.005)
        assert world.reader.breaker.state == "open"

    run(scenario)


def test_a_client_that_goes_leaves_the_probe_to_others() -> None:
    async def scenario(world: World) -> None:
        world.store.user_error = StoreError("gone")
        for _ in range(3):
            await world.read()
        world.now += 1.0
        world.store.user_error, world.store.silent_user = None, True
        gone = asyncio.ensure_future(world.read())
        await asyncio.sleep(0.001)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        world.store.silent_user = False
        assert await world.told() == ((), "")

    run(scenario)


@pytest.mark.parametrize("word", ["stale_history", "no_history", "corrupt_history", "stale_authors", "unknown_authors"])
def test_a_step_may_be_forbidden(word: str) -> None:
    async def scenario(world: World) -> None:
        store = world.store
        store.old = {2: 20}
        await world.read(9, user=5)  # without events and authors: what the store says is no step
        await world.read()
        store.corrupt = word == "corrupt_history"
        store.user_error = StoreError("gone") if "history" in word and not store.corrupt else None
        store.author_error = StoreError("gone") if "authors" in word else None
        before = metric("farm_readings_total", result="forbidden")
        with pytest.raises(StepForbidden, match=rf"{word}.*FARM_READING_FORBID") as raised:
            await world.read(2 if word == "stale_authors" else 3, user=8 if word == "no_history" else 7)
        assert raised.value.word == word
        assert metric("farm_readings_total", result="forbidden") == before + 1

    run(scenario, SETTINGS.model_copy(update={"forbid": frozenset({word})}))


class Ruined(LmdbStore):
    """Its disk fails when it is told to."""

    fails = False

    async def read(
        self, user_id: int, author_ids: Sequence[int] | np.ndarray, live_ids: np.ndarray | None = None
    ) -> StoreAnswer:
        if self.fails:
            raise StoreError("store lmdb: input/output error")
        return await super().read(user_id, author_ids, live_ids)


def test_a_store_of_this_machine_takes_the_same_steps(
    tmp_path: Path, schema: RecordSchema, make_events: Callable[..., np.ndarray]
) -> None:
    async def scenario() -> None:
        async with Ruined(tmp_path, schema, create=True) as store:
            await store.put_users(users_of_events(schema, [7], make_events("video", 3), make_events("live", 2)))
            opened: FeatureStore = store
            reader = LadderReader(opened, SETTINGS)
            whole = await reader.read(7, [1], None, 1e-9)  # it has no limit of time
            assert whole.found.user is not None
            assert (len(whole.found.user.video), whole.degraded) == (3, ())
            store.fails = True
            for cause in ("down", "down", "down", "open"):
                reading = await reader.read(7, [1], None, None)
                assert (reading.degraded, reading.cause) == (("stale_history", "unknown_authors"), cause)
                assert reading.found.user is whole.found.user
            assert (await reader.read(8, [], None, None)).degraded == ("no_history",)

    asyncio.run(scenario())
