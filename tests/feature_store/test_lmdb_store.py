from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import lmdb
import numpy as np
import pytest

from feature_store.lmdb_store import LmdbStore
from feature_store.records import UserBatch, records_from_columns
from feature_store.schema import MISSING, RecordSchema, StoredField, widen
from feature_store.store import FeatureStore, SchemaMismatch, StoreAnswer, StoreError, StoreStats, open_store

Make = Callable[..., np.ndarray]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"lmdb://{tmp_path}/store"


def batch_of(schema: RecordSchema, ids: list[int], video: np.ndarray, live: np.ndarray) -> UserBatch:
    """Equal shares of the events for each user."""
    attributes = records_from_columns(schema, "user", {"user_id": ids, "activity_group": [1] * len(ids)})
    shares = np.arange(len(ids) + 1)
    video_offsets, live_offsets = shares * (len(video) // len(ids)), shares * (len(live) // len(ids))
    return UserBatch(np.array(ids), attributes, video, video_offsets, live, live_offsets)


def overwrite(url: str, table: bytes, key: int, change: Callable[[bytes], bytes]) -> None:
    """Change a stored value behind the store's back."""
    with lmdb.open(url.removeprefix("lmdb://"), max_dbs=8, map_size=1 << 30) as env:
        db = env.open_db(table)
        with env.begin(write=True, db=db) as txn:
            raw_key = (key + 2**63).to_bytes(8, "big")
            txn.put(raw_key, change(txn.get(raw_key, b"")))


def test_what_is_put_is_read(schema: RecordSchema, make_events: Make, url: str) -> None:
    async def scenario() -> None:
        async with open_store(url, schema, create=True) as store:
            video, live = make_events("video", 100), make_events("live", 4, first=1000)
            await store.put_users(batch_of(schema, [-3, 2**63 - 1], video, live))
            lives = {"author_id": [1, 2, 1], "live_id": [10, 20, 11], "tag": [5, 6, 7]}
            await store.put_authors(records_from_columns(schema, "author", lives))
        async with open_store(url) as store:
            assert store.schema == schema
            answer = await store.read(2**63 - 1, [1, 2, 3, 2])
            assert answer.user is not None
            assert answer.user.attributes is not None
            assert not answer.corrupt
            assert answer.user.attributes.tolist() == (2**63 - 1, 1)
            np.testing.assert_array_equal(answer.user.video, video[50:])
            np.testing.assert_array_equal(answer.user.live, live[2:])
            assert {author: widen(rows["live_id"]).tolist() for author, rows in answer.authors.items()} == {
                1: [11],
                2: [20],
            }
            assert await store.users(10) == [-3, 2**63 - 1]
            assert await store.users(1) == [-3]
            assert await store.stats() == StoreStats(users=2, authors=2)

    asyncio.run(scenario())


def test_what_is_not_there_is_missing(schema: RecordSchema, url: str) -> None:
    async def scenario() -> None:
        async with open_store(url, create=True) as store:
            assert await store.read(1, [1, 2]) == StoreAnswer(None, {}, False)
            assert await store.read(MISSING, np.array([MISSING])) == StoreAnswer(None, {}, False)
            assert await store.stats() == StoreStats(0, 0)
            nobody = batch_of(schema, [1], np.empty(0, schema.dtype("video")), np.empty(0, schema.dtype("live")))
            await store.put_users(nobody.part(0, 0))
            await store.put_authors(np.empty(0, schema.dtype("author")))
            await store.merge_events("video", np.empty(0, np.int64), np.empty(0, schema.dtype("video")))
            assert await store.users(1) == []

    asyncio.run(scenario())


@pytest.mark.parametrize(("count", "kept"), [(0, 0), (1, 1), (50, 50), (60, 50)])
def test_histories_keep_the_newest(schema: RecordSchema, make_events: Make, url: str, count: int, kept: int) -> None:
    async def scenario() -> None:
        async with open_store(url, schema, create=True) as store:
            events = make_events("video", count)
            await store.put_users(batch_of(schema, [1], events[::-1], np.empty(0, schema.dtype("live"))))
            await store.merge_events("video", np.full(count, 2), events)
            for user_id in (1, 2)[: 1 if count == 0 else 2]:
                user = (await store.read(user_id, ())).user
                assert user is not None
                np.testing.assert_array_equal(user.video, events[count - kept :])

    asyncio.run(scenario())


def test_events_join_views_and_versions_grow(schema: RecordSchema, make_events: Make, url: str) -> None:
    async def scenario() -> None:
        async with open_store(url, schema, create=True) as store:
            live = make_events("live", 1)
            await store.put_users(batch_of(schema, [1], make_events("video", 2), live))
            versions = [await version(store)]
            started = make_events("video", 1, first=9, known_after=[None], behaviours=[1])
            ended = make_events("video", 1, first=9, known_after=[700], behaviours=[4])
            for events in (ended, started, ended):
                await store.merge_events("video", np.array([1]), events)
                versions.append(await version(store))
            user = (await store.read(1, ())).user
            assert user is not None
            assert user.attributes is not None
            assert user.video["view_id"].tolist() == [0, 1, 9]
            assert user.video[["known_after", "behaviours"]][-1].tolist() == (700, 5)
            np.testing.assert_array_equal(user.live, live)
            assert versions == sorted(set(versions))

    async def version(store: FeatureStore) -> int:
        user = (await store.read(1, ())).user
        assert user is not None
        return user.version

    asyncio.run(scenario())


def test_authors_keep_their_newest_lives(schema: RecordSchema, url: str) -> None:
    schema = schema.model_copy(update={"author_lives": 2})

    async def scenario() -> None:
        async with open_store(url, schema, create=True) as store:
            for live, tag in [(10, 1), (11, 2), (10, 3), (12, 4)]:
                record = {"author_id": [1], "live_id": [live], "tag": [tag]}
                await store.put_authors(records_from_columns(schema, "author", record))
            kept = (await store.read(0, [1])).authors[1]
            assert kept[["live_id", "tag"]].tolist() == [(10, 3), (12, 4)]

    asyncio.run(scenario())


def test_corrupt_values_are_said_and_mended_by_new_events(
    schema: RecordSchema, make_events: Make, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def fill() -> None:
        async with open_store(url, schema, create=True) as store:
            await store.put_users(batch_of(schema, [1, 2], make_events("video", 4), make_events("live", 4)))
            await store.put_authors(records_from_columns(schema, "author", {"author_id": [1, 2], "live_id": [1, 2]}))

    async def check() -> None:
        async with open_store(url) as store:
            answer = await store.read(1, [1, 2])
            assert answer.user is None
            assert answer.corrupt
            assert list(answer.authors) == [2]
            assert "user 1: the checksum does not match" in caplog.text
            assert (await store.read(2, ())).user is not None
            await store.merge_events("video", np.array([1]), make_events("video", 1))
            await store.put_authors(records_from_columns(schema, "author", {"author_id": [1], "live_id": [3]}))
            answer = await store.read(1, [1])
            assert answer.user is not None
            assert len(answer.user.video) == 1
            assert list(answer.authors) == [1]

    asyncio.run(fill())
    overwrite(url, b"users", 1, lambda value: value[:-1] + bytes([value[-1] ^ 1]))
    overwrite(url, b"authors", 1, lambda value: value[:-1])
    asyncio.run(check())


def test_the_map_grows_when_it_is_full(schema: RecordSchema, make_events: Make, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with LmdbStore(tmp_path, schema, create=True, map_size=1 << 18) as store:
            count = 1000
            events = make_events("video", 20 * count)
            await store.put_users(batch_of(schema, list(range(count)), events, np.empty(0, schema.dtype("live"))))
            assert await store.stats() == StoreStats(count, 0)
            assert (await store.read(count - 1, ())).user is not None

    asyncio.run(scenario())


def test_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asyncio.run(open_store("lmdb://some/where", create=True).close())
    assert (tmp_path / "some/where/data.mdb").exists()
    for url in ("redis://host", "rediss://host", "redis+sentinel://host/x", "redis+cluster://host"):
        with pytest.raises(StoreError, match="Redis is not supported in this version yet"):
            open_store(url)
    for url in ("ftp://x", "some/where", "", "lmdb:/x"):
        with pytest.raises(StoreError, match="unknown scheme; known are lmdb://"):
            open_store(url)
    with pytest.raises(StoreError, match="the path is missing"):
        open_store("lmdb://")


def test_a_store_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=f"no store at {tmp_path}/x: make one with `farm materialize`"):
        open_store(f"lmdb://{tmp_path}/x")
    assert not (tmp_path / "x").exists()
    lmdb.open(str(tmp_path / "other")).close()
    with pytest.raises(StoreError, match=r"no store at .*/other: "):
        open_store(f"lmdb://{tmp_path}/other")
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be opened"):
        open_store(f"lmdb://{tmp_path}/file", create=True)


def test_another_schema_is_refused_with_the_difference(schema: RecordSchema, url: str) -> None:
    asyncio.run(open_store(url, schema, create=True).close())
    tag = StoredField(name="tag", dtype="i4")
    wider = tuple(tag if field.name == "tag" else field for field in schema.video)
    others: dict[str, dict[str, object]] = {
        "version is 1, asked 2": {"version": 2},
        "name is farm-default, asked x": {"name": "x"},
        "history_length is 50, asked 60": {"history_length": 60},
        "video.tag is i2, asked i4": {"video": wider},
        "user.city is absent, asked i2": {"user": (*schema.user, StoredField(name="city", dtype="i2"))},
        "live.behaviours is i2, asked absent": {"live": schema.live[:-1]},
        "author: fields are in another order": {"author": schema.author[::-1]},
    }
    for message, change in others.items():
        for create in (False, True):
            other = RecordSchema.model_validate(schema.model_dump() | change)
            with pytest.raises(SchemaMismatch, match=message):
                open_store(url, other, create=create)
    described = tuple(field.model_copy(update={"description": "new words"}) for field in schema.user)
    asyncio.run(open_store(url, schema.model_copy(update={"user": described})).close())


def test_misuse_is_one_clear_line(schema: RecordSchema, make_events: Make, url: str) -> None:
    async def scenario() -> None:
        store = open_store(url, schema, create=True)
        with pytest.raises(StoreError, match="already open in this process"):
            open_store(url)
        with pytest.raises(ValueError, match="1 user ids for 2 events"):
            await store.merge_events("video", np.array([1]), make_events("video", 2))
        with pytest.raises(ValueError, match="video: "):
            await store.merge_events("video", np.array([1]), make_events("live", 1))
        with pytest.raises(ValueError, match="author: "):
            await store.put_authors(make_events("live", 1))
        await store.close()
        with pytest.raises(StoreError, match="closed"):
            await store.read(1, ())

    asyncio.run(scenario())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_store_opened_before_a_fork_is_refused_in_the_child(schema: RecordSchema, url: str) -> None:
    store = open_store(url, schema, create=True)
    child = os.fork()
    if child == 0:
        try:
            asyncio.run(store.read(1, ()))
        except StoreError:
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    asyncio.run(store.close())
