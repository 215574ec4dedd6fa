"""Several processes on one store, and processes that are killed."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import time
from pathlib import Path

import lmdb
import numpy as np
from builders import author_updates, views

from feature_store.events.batch import EventBatch
from feature_store.lmdb_store import LmdbStore
from feature_store.schema import default_schema
from feature_store.store import open_store

USERS = np.arange(8)
SPAWN = multiprocessing.get_context("spawn")


def one_view_each(view: int) -> EventBatch:
    """The same view for all of USERS."""
    columns = {name: np.full(len(USERS), view) for name in ("view_id", "event_time", "known_after", "author_id")}
    return views(default_schema(), "video", USERS.tolist(), **columns)


def write_views(path: Path, first: int, count: int) -> None:
    async def write() -> None:
        async with open_store(f"lmdb://{path}") as store:
            for view in range(first, first + count):
                await store.apply(one_view_each(view))

    asyncio.run(write())


def fill_small_map(path: Path, first: int, count: int) -> None:
    """Write authors through a map that must grow over and over."""

    async def write() -> None:
        async with LmdbStore(path, default_schema(), create=True, map_size=1 << 17) as store:
            for start in range(first, first + count, 500):
                ids = np.arange(start, start + 500)
                await store.apply(author_updates(default_schema(), ids.tolist(), author_id=ids, live_id=ids))
                assert len((await store.read(0, ids)).authors) == 500

    asyncio.run(write())


def read_until_killed(path: Path) -> None:
    with lmdb.open(str(path)) as env, env.begin():
        (path / "reading").touch()
        time.sleep(60)


def views_by_user(path: Path) -> list[list[int]]:
    async def read() -> list[list[int]]:
        async with open_store(f"lmdb://{path}") as store:
            answers = [await store.read(user, ()) for user in USERS.tolist()]
            return [answer.user.video["view_id"].tolist() if answer.user else [] for answer in answers]

    return asyncio.run(read())


def run_together(*processes: multiprocessing.process.BaseProcess) -> None:
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0


def test_concurrent_writers_of_the_same_users_lose_nothing(tmp_path: Path) -> None:
    asyncio.run(open_store(f"lmdb://{tmp_path}", create=True).close())
    run_together(*[SPAWN.Process(target=write_views, args=(tmp_path, first, 16)) for first in (1, 17, 33)])
    assert views_by_user(tmp_path) == [list(range(1, 49))] * len(USERS)


def test_the_map_grows_under_several_processes(tmp_path: Path) -> None:
    asyncio.run(open_store(f"lmdb://{tmp_path}", create=True).close())
    run_together(*[SPAWN.Process(target=fill_small_map, args=(tmp_path, first, 5000)) for first in (0, 5000, 10_000)])

    async def count() -> int:
        async with open_store(f"lmdb://{tmp_path}") as store:
            return (await store.stats()).authors

    assert asyncio.run(count()) == 15_000


def test_a_writer_killed_again_and_again_leaves_whole_transactions(tmp_path: Path) -> None:
    asyncio.run(open_store(f"lmdb://{tmp_path}", create=True).close())
    newest = 0
    for attempt in range(4):
        writer = SPAWN.Process(target=write_views, args=(tmp_path, newest + 1, 10**6))
        writer.start()
        deadline = time.monotonic() + 20
        while views_by_user(tmp_path)[0][-1:] in ([], [newest]) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.02 + 0.013 * attempt)
        assert writer.pid is not None
        assert writer.is_alive()
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        histories = views_by_user(tmp_path)
        assert all(history == histories[0] for history in histories)  # a transaction writes all users or none
        assert histories[0][-1] > newest
        newest = histories[0][-1]
        assert histories[0] == list(range(max(1, newest - 49), newest + 1))
    write_views(tmp_path, newest + 1, 1)  # the lock of the dead writer is free
    assert views_by_user(tmp_path)[-1][-1] == newest + 1


def test_a_killed_reader_does_not_keep_old_pages(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_store(f"lmdb://{tmp_path}", create=True) as store:
            await store.apply(one_view_each(1))
            reader = SPAWN.Process(target=read_until_killed, args=(tmp_path,))
            reader.start()
            while not (tmp_path / "reading").exists():
                assert reader.is_alive()
                await asyncio.sleep(0.01)
            reader.kill()
            reader.join()
            for view in range(100):
                await store.apply(one_view_each(view))

    asyncio.run(scenario())
    assert (tmp_path / "data.mdb").stat().st_size < 100 * 4096 * 4  # each write takes more than 4 pages of its own
