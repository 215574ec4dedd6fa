"""Of `farm bench store`: bulk loads, the memory of a user in Redis, and the client's CPU for a read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from feature_store.lmdb_store import LmdbStore
from feature_store.records import UserBatch
from feature_store.redis.store import RedisStore
from feature_store.schema import RecordSchema, widen
from feature_store.store import FeatureStore
from loadtest.bench.store_data import START_MS

HOT_AUTHORS = 200

_LOOK_S = 0.3  # at the server's memory
_LOOKS = 20  # at most
_STEADY_BYTES = 2**16  # a connection's buffers come and go


@dataclass(frozen=True)
class Put:
    """One bulk load."""

    users: int
    seconds: float
    client_cpu_s: float


async def load_lmdb(folder: Path, schema: RecordSchema, batches: Sequence[UserBatch], rounds: int) -> dict[str, Any]:
    """Users/s into a new store each time; the last stays, in `folder` / "last"."""
    puts = []
    for number in range(rounds):
        name = "last" if number == rounds - 1 else f"round-{number}"
        async with LmdbStore(folder / name, schema, create=True) as store:
            puts.append(await _put(store, batches))
            stored = await store.stats()
    return {**_rates(puts), "bytes_per_user": stored.size_bytes / stored.users}


async def load_redis(store: RedisStore, batches: Sequence[UserBatch], rounds: int) -> dict[str, Any]:
    """Users/s into a new generation each time, and the memory it took; the last becomes the active one."""
    puts, server_cpu, memory = [], [], []
    for number in range(rounds):
        generation = await store.new_generation()
        before, cpu_before = await _settled_memory(store), await server_cpu_s(store)
        put = await _put(store.into(generation), batches)
        puts.append(put)
        server_cpu.append(1e6 * (await server_cpu_s(store) - cpu_before) / put.users)
        memory.append((await _settled_memory(store) - before) / put.users)
        if number < rounds - 1:
            await store.drop(generation)
    await store.switch(generation)
    return {
        **_rates(puts),
        "server_cpu_us_per_user": server_cpu,
        "used_memory_per_user": memory,  # the first time with buffers of connections
        "used_memory_median": median(memory),
        "memory_usage_mean": (await store.stats()).detail["bytes_per_user"],
    }


async def read_cpu(
    store: FeatureStore, user_ids: np.ndarray, authors: np.ndarray, rounds: int, reads: int
) -> dict[str, Any]:
    """CPU of this process for a read [ms], of a user alone and with HOT_AUTHORS known authors, in alternation.

    authors: records "author", of which the first HOT_AUTHORS are asked for, each with its room.
    """
    users = np.random.default_rng(0).choice(user_ids, reads).tolist()
    hot = widen(authors["author_id"][:HOT_AUTHORS]), widen(authors["live_id"][:HOT_AUTHORS])
    none = np.empty(0, np.int64), np.empty(0, np.int64)
    for asked in (none, hot):
        found = await store.read(users[0], *asked)
        assert found.user is not None, "a user is missing"
        assert len(found.authors) == len(asked[0]), "authors are missing"
    times = [(await _read_ms(store, users, *none), await _read_ms(store, users, *hot)) for _ in range(rounds)]
    alone, with_authors = ([row[column] for row in times] for column in (0, 1))
    return {
        "user_ms": alone,
        "user_and_authors_ms": with_authors,
        "user_median_ms": median(alone),
        "authors_median_ms": median(with_authors) - median(alone),
    }


async def server_cpu_s(store: RedisStore) -> float:
    """CPU that the server has used so far."""
    (server,) = await store.link.primaries()
    told = await server.info("cpu")
    return float(told["used_cpu_user"] + told["used_cpu_sys"])


async def _put(store: FeatureStore, batches: Sequence[UserBatch]) -> Put:
    start, cpu = time.perf_counter(), time.process_time()
    for batch in batches:
        await store.put_users(batch, updated_at=START_MS)
    users = sum(len(batch.user_ids) for batch in batches)
    return Put(users, time.perf_counter() - start, time.process_time() - cpu)


def _rates(puts: Sequence[Put]) -> dict[str, Any]:
    rates = [put.users / put.seconds for put in puts]
    cpu = [1e6 * put.client_cpu_s / put.users for put in puts]
    return {"users_per_s": rates, "median": median(rates), "client_cpu_us_per_user": cpu}


async def _settled_memory(store: RedisStore) -> int:
    """Bytes in use, when what was removed is free and what connections need for a moment is given back."""
    (server,) = await store.link.primaries()
    used = 0
    for _ in range(_LOOKS):
        used, before = int((await server.info("memory"))["used_memory"]), used
        if abs(used - before) <= _STEADY_BYTES:
            break
        await asyncio.sleep(_LOOK_S)
    return used


async def _read_ms(store: FeatureStore, users: list[int], authors: np.ndarray, live_ids: np.ndarray) -> float:
    start = time.process_time()
    for user in users:
        await store.read(user, authors, live_ids)
    return (time.process_time() - start) * 1000 / len(users)
