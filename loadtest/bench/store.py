"""`farm bench store`: bulk loads, reads, memory, merging and freshness, with a real Valkey on loopback and with LMDB.

Client, worker and server share two cores.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from feature_store.lmdb_store import LmdbStore
from feature_store.redis.store import RedisStore
from feature_store.schema import RecordSchema, default_schema
from feature_store.store import FeatureStore
from loadtest.bench.cores import pinned
from loadtest.bench.store_data import START_MS, Traffic, author_records, user_batches, user_ids
from loadtest.bench.store_events import freshness, merge_rates
from loadtest.bench.store_load import HOT_AUTHORS, load_lmdb, load_redis, read_cpu
from loadtest.bench.store_materialize import materialize_rates, simulated
from loadtest.redis_servers import valkey
from model.figures import claim, report

CORES = 2
_SEED = 1


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    users: int = 40_000
    authors: int = 20_000
    rounds: int = 3  # of bulk loads and of full logs
    read_rounds: int = 9
    reads: int = 3_000  # of a round
    log_requests: int = 150  # of a full log
    log_events: int = 1_000  # of each of them
    steady_requests: int = 1_500
    steady_events: int = 20  # of each of them
    steady_every_s: float = 0.01
    days: int = 4  # of the logs that are materialized
    sample_every: int = 5  # requests, of which the view is looked for

    @property
    def steady_rate(self) -> float:
        """Events/s."""
        return self.steady_events / self.steady_every_s


QUICK = Sizes(users=10_000, rounds=1, read_rounds=3, reads=1_000, log_requests=30, steady_requests=300, sample_every=3)


def run(quick: bool) -> dict[str, Any]:
    """Measure with the default record schema: full histories of both domains."""
    return measure(QUICK if quick else Sizes())


def measure(sizes: Sizes) -> dict[str, Any]:
    """The report of one run."""
    schema = default_schema()
    with (
        pinned(set(sorted(os.sched_getaffinity(0))[:CORES])),
        tempfile.TemporaryDirectory(prefix="farm-bench-") as scratch,
        valkey() as server,
    ):
        results = asyncio.run(_measure(server.url, Path(scratch), schema, sizes))
    settings = {"cores": CORES, "record_schema": schema.name, "history_length": schema.history_length, **asdict(sizes)}
    settings |= {"versions": {name: version(name) for name in ("redis", "hiredis", "lmdb")}}
    return report("store", settings, results, _claims(results, sizes))


async def _measure(url: str, scratch: Path, schema: RecordSchema, sizes: Sizes) -> dict[str, Any]:
    batches = user_batches(schema, sizes.users, _SEED)
    data = simulated(scratch, sizes.users, sizes.days)
    folders = [f"lmdb://{scratch}/materialized-{number}" for number in range(sizes.rounds)]
    spaces = [f"{url}?namespace=materialized-{number}" for number in range(sizes.rounds)]
    lmdb: dict[str, Any] = {"materialize": await materialize_rates(data, folders)}
    redis: dict[str, Any] = {"materialize": await materialize_rates(data, spaces)}
    lmdb["load"] = await load_lmdb(scratch, schema, batches, sizes.rounds)
    async with LmdbStore(scratch / "last") as embedded:
        lmdb["read"] = await _read(embedded, sizes)
    async with RedisStore(url, schema, create=True) as store:
        loaded = await load_redis(store, batches, sizes.rounds)
        read = await _read(store, sizes)
        traffic = Traffic(schema, sizes.users, sizes.authors, _SEED)
        full = [traffic.requests(sizes.log_requests, sizes.log_events) for _ in range(sizes.rounds)]
        merged = await merge_rates(url, store, full)
        steady = traffic.requests(1 + sizes.steady_requests, sizes.steady_events)
        fresh = await freshness(url, store, steady, sizes.steady_every_s, sizes.sample_every)
        server = (await store.stats()).detail["version"]
    redis |= {"server": server, "load": loaded, "read": read, "merge": merged, "fresh": fresh}
    return {"lmdb": lmdb, "redis": redis}


async def _read(store: FeatureStore, sizes: Sizes) -> dict[str, Any]:
    authors = author_records(store.schema, sizes.authors)
    await store.put_authors(authors, np.full(len(authors), START_MS))
    return await read_cpu(store, user_ids(sizes.users), authors, sizes.read_rounds, sizes.reads)


def _claims(results: dict[str, Any], sizes: Sizes) -> list[dict[str, Any]]:
    lmdb, redis = results["lmdb"], results["redis"]
    authors = f"CPU that {HOT_AUTHORS} known authors add to a read, ms"
    fresh = redis["fresh"]["visible_ms"]
    return [
        claim("Redis: users/s of farm materialize", redis["materialize"]["median"], ">=", 20_000),
        claim("LMDB: users/s of farm materialize", lmdb["materialize"]["median"], ">=", 50_000),
        claim("Redis: client CPU to read a user, ms", redis["read"]["user_median_ms"], "<=", 0.15),
        claim("LMDB: client CPU to read a user, ms", lmdb["read"]["user_median_ms"], "<=", 0.02),
        claim(f"Redis: {authors}", redis["read"]["authors_median_ms"], "<=", 0.04),
        claim(f"LMDB: {authors}", lmdb["read"]["authors_median_ms"], "<=", 0.04),
        claim("Redis: events/s merged by one worker", redis["merge"]["median"], ">=", 20_000),
        claim("Redis: checked newest views that are missing after it", redis["merge"]["missing"], "<=", 0),
        claim("Redis: bytes of a user's memory (4.5 KB)", redis["load"]["used_memory_median"], "<=", 4_500),
        claim(f"Redis: ms until visible at {sizes.steady_rate:,.0f} events/s, p99", fresh["p99"], "<=", 100),
    ]
