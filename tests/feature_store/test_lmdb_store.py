from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import lmdb
import numpy as np
import pytest
from builders import author_updates, users_of_events

from feature_store.events.batch import EventBatch
from feature_store.lmdb_store import LmdbStore
from feature_store.schema import RecordSchema
from feature_store.store import StoreError, open_store

Make = Callable[..., np.ndarray]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"lmdb://{tmp_path}/store"


def overwrite(url: str, table: bytes, key: int, change: Callable[[bytes], bytes]) -> None:
    """Change a stored value behind the store's back."""
    with lmdb.open(url.removeprefix("lmdb://"), max_dbs=8, map_size=1 << 30) as env:
        db = env.open_db(table)
        with env.begin(write=True, db=db) as txn:
            raw_key = (key + 2**63).to_bytes(8, "big")
            txn.put(raw_key, change(txn.get(raw_key, b"")))


def test_corrupt_values_are_said_and_mended_by_new_events(
    schema: RecordSchema, make_events: Make, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def fill() -> None:
        async with open_store(url, schema, create=True) as store:
            await store.put_users(users_of_events(schema, [1, 2], make_events("video", 4), make_events("live", 4)))
            await store.apply(author_updates(schema, [1, 1], author_id=[1, 2], live_id=[1, 2]))

    async def check() -> None:
        async with open_store(url) as store:
            answer = await store.read(1, [1, 2])
            assert answer.user is None
            assert answer.corrupt
            assert list(answer.authors) == [2]
            assert "user 1: the checksum does not match" in caplog.text
            assert (await store.read(2, ())).user is not None
            assert [user_id async for rows in store.scan_users() for user_id, _ in rows] == [2]
            assert [len(rows) async for rows in store.scan_authors()] == [1]
            await store.apply(
                replace(EventBatch.empty(schema), video_users=np.array([1]), video=make_events("video", 1))
            )
            await store.apply(author_updates(schema, [1], author_id=[1], live_id=[3]))
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
            live = np.empty(0, schema.dtype("live"))
            await store.put_users(users_of_events(schema, list(range(count)), events, live))
            stats = await store.stats()
            assert stats.users == count
            assert 1 << 18 < int(stats.detail["map_used_bytes"]) <= int(stats.detail["map_bytes"])
            assert stats.size_bytes >= events.nbytes
            assert str(stats.detail["version"]).startswith("LMDB ")
            assert (await store.read(count - 1, ())).user is not None

    asyncio.run(scenario())


def test_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asyncio.run(open_store("lmdb://some/where", create=True).close())
    assert (tmp_path / "some/where/data.mdb").exists()
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


def test_a_store_without_tombstones_gets_their_table(schema: RecordSchema, url: str) -> None:
    async def scenario() -> None:
        async with open_store(url) as store:
            assert await store.delete_user(1, 5) is False
            assert [rows async for rows in store.scan_erased()] == [[(1, 5)]]

    asyncio.run(open_store(url, schema, create=True).close())
    with lmdb.open(url.removeprefix("lmdb://"), max_dbs=8) as env, env.begin(write=True) as txn:
        txn.drop(env.open_db(b"erased", txn))
    asyncio.run(scenario())


def test_misuse_is_one_clear_line(schema: RecordSchema, url: str) -> None:
    async def scenario() -> None:
        store = open_store(url, schema, create=True)
        with pytest.raises(StoreError, match="already open in this process"):
            open_store(url)
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
