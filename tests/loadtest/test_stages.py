"""The stages of a ranking are measured over a real store."""

from __future__ import annotations

import asyncio
from pathlib import Path

import orjson
import pytest

from feature_store.store import open_store
from loadtest.bench.stages import stage_costs

STAGES = {
    "http", "parse", "store", "inputs", "digest", "calibrate", "formula", "order", "render", "metrics", "total",
}  # fmt: skip


async def some_users(url: str) -> list[int]:
    async with open_store(url) as store:
        return await store.users(8)


@pytest.mark.parametrize("evict_mb", [0, 1])
def test_each_stage_costs_something(artifact: Path, store_url: str, evict_mb: int) -> None:
    users = asyncio.run(some_users(store_url))
    bodies = [orjson.dumps({"user_id": user, "candidates": list(range(50)), "top_k": 10}) for user in users]
    costs = stage_costs(artifact, store_url, bodies, rounds=2, evict_mb=evict_mb)
    assert set(costs) == STAGES
    assert min(costs.values()) > 0
    assert costs["total"] == pytest.approx(sum(costs.values()) / 2)
