"""The store bench: what it sends is what it says, and every part of it measures."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feature_store.events.batch import EventBatch
from feature_store.lmdb_store import LmdbStore
from feature_store.merge import merge_batch, merge_users
from feature_store.schema import default_schema
from loadtest.bench import store
from loadtest.bench.store_data import BATCH_USERS, Traffic, user_batches, user_ids
from loadtest.bench.store_load import load_lmdb

SCHEMA = default_schema()
TINY = store.Sizes(
    users=300,
    authors=250,
    rounds=1,
    read_rounds=3,
    reads=50,
    log_requests=3,
    log_events=200,
    steady_requests=24,
    sample_every=4,
)


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return store.measure(TINY)


def test_users_are_full_and_merged_already() -> None:
    batches = user_batches(SCHEMA, BATCH_USERS + 7, seed=3)
    assert [len(batch.user_ids) for batch in batches] == [BATCH_USERS, 7]
    last = batches[1]
    merged = merge_batch(SCHEMA, last)
    assert np.array_equal(merged.video, last.video)
    assert np.array_equal(merged.live, last.live)
    assert len(merged.video) == len(merged.live) == 7 * SCHEMA.history_length
    assert last.video["view_id"][:50].tolist() == last.video["view_id"][50:100].tolist() == list(range(1, 51))


def test_traffic_is_of_a_seed_and_its_users_follow_zipf() -> None:
    requests = Traffic(SCHEMA, 1000, 50, seed=4).requests(20, 1000)
    again = Traffic(SCHEMA, 1000, 50, seed=4).requests(20, 1000)
    assert [request.to_bytes(SCHEMA) for request in requests] == [request.to_bytes(SCHEMA) for request in again]
    users = np.concatenate([request.video_users for request in requests])
    assert set(users.tolist()) <= set(user_ids(1000).tolist())
    counts = np.sort(np.bincount(np.unique(users, return_inverse=True)[1]))[::-1]
    assert 0.10 < counts[0] / len(users) < 0.17  # 1 / (1 + 1/2 + ... + 1/1000) = 0.134
    assert 3 < counts[0] / counts[4] < 8


def test_later_acts_join_views_of_the_request_before() -> None:
    first, second = Traffic(SCHEMA, 100, 50, seed=5).requests(2, 1000)
    both, alone = (
        merge_users(SCHEMA.model_copy(update={"history_length": 9999}), events)
        for events in (EventBatch.concat([first, second]), first)
    )
    views = len(first.video) + len(second.video)
    assert len(first.video) == 880
    assert len(both[2][0]) == views - 880 // 5
    assert len(alone[2][0]) == len(first.video)


def test_the_newest_views_stay_in_a_store(tmp_path: Path) -> None:
    async def run() -> None:
        await load_lmdb(tmp_path, SCHEMA, user_batches(SCHEMA, 40, seed=1), rounds=2)
        async with LmdbStore(tmp_path / "last") as loaded:
            for request in Traffic(SCHEMA, 40, 50, seed=6).requests(5, 300):
                await loaded.apply(request)
                found = (await loaded.read(int(request.video_users[-1]), ())).user
                assert found is not None
                assert found.video["view_id"][-1] == request.video["view_id"][-1]

    asyncio.run(run())


def test_loads_and_reads_are_measured_in_rounds(report: dict[str, Any]) -> None:
    for backend in ("lmdb", "redis"):
        results = report["results"][backend]
        assert len(results["load"]["users_per_s"]) == TINY.rounds
        assert results["load"]["median"] == np.median(results["load"]["users_per_s"]) > 0
        assert all(cpu > 0 for cpu in results["load"]["client_cpu_us_per_user"])
        read = results["read"]
        assert len(read["user_ms"]) == len(read["user_and_authors_ms"]) == TINY.read_rounds
        assert read["user_median_ms"] + read["authors_median_ms"] == pytest.approx(
            np.median(read["user_and_authors_ms"])
        )
    histories = SCHEMA.history_length * (SCHEMA.dtype("video").itemsize + SCHEMA.dtype("live").itemsize)
    assert histories < report["results"]["redis"]["load"]["memory_usage_mean"] < histories + 600


def test_a_full_log_is_merged_by_a_real_worker(report: dict[str, Any]) -> None:
    merged = report["results"]["redis"]["merge"]
    assert [row["events"] for row in merged["rounds"]] == [3 * 200] * TINY.rounds
    assert all(row["entries"] == 3 * 8 for row in merged["rounds"])
    assert merged["dead_letters"] == merged["missing"] == 0


def test_freshness_is_from_due_to_visible(report: dict[str, Any]) -> None:
    fresh = report["results"]["redis"]["fresh"]
    delays, visible = fresh["each_visible_ms"], fresh["visible_ms"]
    assert len(delays) == TINY.steady_requests / TINY.sample_every
    assert 0 < fresh["append_ms"]["p50"] <= fresh["append_ms"]["p100"]
    assert min(delays) <= visible["p50"] <= visible["p99"] <= visible["p100"] == pytest.approx(max(delays), abs=0.01)
    assert all(share > 0 for share in fresh["cpu_share"].values())


def test_every_figure_of_the_issue_has_a_claim(report: dict[str, Any]) -> None:
    bounds = [(claim["op"], claim["bound"]) for claim in report["claims"]]
    assert bounds[:2] == [(">=", 20_000), (">=", 50_000)]
    assert bounds[2:6] == [("<=", 0.15), ("<=", 0.02), ("<=", 0.04), ("<=", 0.04)]
    assert bounds[6:] == [(">=", 20_000), ("<=", 0), ("<=", 4_500), ("<=", 100)]
    assert report["claims"][-1]["claim"] == "Redis: ms until visible at 2,000 events/s, p99"
    assert report["results"]["redis"]["server"].startswith("Valkey")


def test_the_bench_gives_its_cores_back(report: dict[str, Any]) -> None:
    assert report["settings"]["cores"] == 2
    assert len(os.sched_getaffinity(0)) == report["environment"]["cores"]
