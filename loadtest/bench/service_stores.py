"""Of `farm bench service`: stores with real users, full histories and authors."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from feature_store.records import UserBatch
from feature_store.schema import default_schema
from feature_store.store import open_store
from loadtest.bench.cores import pinned
from loadtest.bench.store_data import BATCH_USERS, START_MS, author_records, user_batches, user_ids
from loadtest.redis_servers import valkey

Backend = Literal["redis", "lmdb"]
BACKENDS: tuple[Backend, ...] = ("redis", "lmdb")

AUTHORS = 20_000
NOW_MS = START_MS + 3_600_000  # of requests: every event of the histories is known
_SEED = 1


@contextmanager
def filled_store(backend: Backend, users: int, folder: Path, server_cpus: set[int]) -> Iterator[str]:
    """The URL of a new store with so many users.

    A server of the Redis protocol runs on `server_cpus`, with files of its own; an LMDB store lies in `folder`.
    """
    with ExitStack() as stack:
        url = f"lmdb://{folder / f'users-{users}'}"
        if backend == "redis":
            with pinned(server_cpus):  # which the server inherits
                url = stack.enter_context(valkey()).url
        asyncio.run(fill(url, users))
        yield url


async def fill(url: str, users: int) -> None:
    """Create the store at `url`, with so many users and all authors."""
    schema = default_schema()
    async with open_store(url, schema, create=True) as store:
        authors = author_records(schema, AUTHORS)
        await store.put_authors(authors, np.full(len(authors), START_MS))
        for batch in _batches(users):
            await store.put_users(batch, START_MS)


def _batches(users: int) -> Iterator[UserBatch]:
    """All of store_data's users; those of later batches have the histories of the first, so that a million are made
    in no time."""
    ids = user_ids(users)
    (first,) = user_batches(default_schema(), min(users, BATCH_USERS), _SEED)
    for start in range(0, users, BATCH_USERS):
        yield _renamed(first, ids[start : start + BATCH_USERS])


def _renamed(batch: UserBatch, ids: np.ndarray) -> UserBatch:
    """Its first users under other ids."""
    part = batch.part(0, len(ids))
    assert part.attributes is not None
    attributes = part.attributes.copy()
    attributes["user_id"] = ids
    video, live = part.video[: part.video_offsets[-1]], part.live[: part.live_offsets[-1]]
    return replace(part, user_ids=ids, attributes=attributes, video=video, live=live)
