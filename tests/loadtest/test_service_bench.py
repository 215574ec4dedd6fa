"""The service bench: its stores, its arithmetic, and every part of it on tiny sizes against the real service."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from feature_store.schema import default_schema
from feature_store.store import open_store
from loadtest.bench import service
from loadtest.bench.cores import Cores, pinned
from loadtest.bench.parts import UnknownPartError
from loadtest.bench.service_lab import BenchError, Lab, interleave, open_lab
from loadtest.bench.service_linear import fit
from loadtest.bench.service_saturated import split
from loadtest.bench.service_sizes import QUICK
from loadtest.bench.service_stores import filled_store
from loadtest.bench.store_data import BATCH_USERS, user_ids
from loadtest.process import PATIENT

TINY = replace(
    QUICK,
    users=60,
    few_users=20,
    many_users=80,
    bodies=2_000,
    seconds=0.3,
    open_seconds=0.3,
    linear_seconds=0.2,
    mixed_seconds=0.6,
    stage_rounds=1,
    counts=(10, 50, 100),
)


@pytest.fixture(scope="module")
def lab(artifact: Path) -> Iterator[Lab]:
    with open_lab(artifact, TINY.users, **PATIENT) as opened:
        yield opened


@pytest.fixture(scope="module")
def saturated(lab: Lab) -> dict[str, Any]:
    return service.PARTS["saturated"].measure(lab, TINY)


def measure(lab: Lab, name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    part = service.PARTS[name]
    found = part.measure(lab, TINY)
    json.dumps(found)
    return found, part.claims(found)


def test_a_stores_users_are_all_there_with_full_histories(tmp_path: Path) -> None:
    async def read(url: str) -> list[tuple[int, int, int]]:
        async with open_store(url) as store:
            users = [(await store.read(user, ())).user for user in (ids[0], ids[BATCH_USERS], ids[-1])]
            assert (await store.stats()).users == len(ids)
        return [(len(user.video), len(user.live), int(user.attributes["user_id"])) for user in users if user]

    ids, length = user_ids(BATCH_USERS + 3).tolist(), default_schema().history_length
    with filled_store("lmdb", len(ids), tmp_path, {Cores.of_this_process().others}) as url:
        assert asyncio.run(read(url)) == [(length, length, user) for user in (ids[0], ids[BATCH_USERS], ids[-1])]


def test_the_line_through_exact_costs_is_found() -> None:
    line = fit((50, 200, 1000), [0.5 + 0.01 * n for n in (50, 200, 1000)])
    assert (line["a_ms"], line["b_us"], line["r2"]) == pytest.approx((0.5, 10.0, 1.0))
    bent = fit((0, 1, 2), [0.0, 1.0, 0.0])
    assert bent["r2"] == pytest.approx(0.0)
    assert bent["residuals_ms"] == pytest.approx([-1 / 3, 2 / 3, -1 / 3])


def test_http_is_what_no_stage_accounts_for() -> None:
    stages = dict.fromkeys(("parse", "store", "inputs", "digest", "calibrate", "formula", "order", "render"), 0.01)
    found = {"rest_cpu_ms": 0.5, "user_cpu_ms": 0.4, "candidate_cpu_ms": 1.5}
    parts = split(found, {**stages, "metrics": 0.02, "http": 0.3, "total": 0.4})
    assert parts["http"] == pytest.approx(0.5 - 0.08 - 0.02)
    assert sum(parts.values()) == pytest.approx(0.5 + 0.4 + 1.5)


def test_blocks_alternate_after_one_of_each_that_fills_caches() -> None:
    order: list[str] = []

    def way(name: str) -> Any:
        def block(seconds: float) -> Any:
            order.append(f"{name}{seconds:g}")
            return len(order)

        return block

    blocks = interleave({"a": way("a"), "b": way("b")}, rounds=3, seconds=2.0)
    assert order == ["a2", "b2", "a2", "b2", "b2", "a2", "a2", "b2"]
    assert blocks == {"a": [3, 6, 7], "b": [4, 5, 8]}
    order.clear()
    interleave({"a": way("a")}, rounds=1, seconds=0.4)
    assert order == ["a1", "a0.4"]


def test_cores_are_given_back() -> None:
    before = os.sched_getaffinity(0)
    with pinned({min(before)}):
        assert os.sched_getaffinity(0) == {min(before)}
    assert os.sched_getaffinity(0) == before


def test_a_part_must_exist(artifact: Path) -> None:
    with pytest.raises(UnknownPartError, match="no part 'everything'; there are generator, saturated"):
        service.run(artifact, "everything", quick=True)


def test_the_generator_is_measured_against_a_trivial_server(lab: Lab) -> None:
    found, claims = measure(lab, "generator")
    assert found["per_second"] > 0
    assert 0 < found["generator_cpu_us"] < 1000
    assert claims == []


def test_a_hand_over_by_socket_is_compared_with_shared_memory(lab: Lab) -> None:
    found, claims = measure(lab, "hand-over")
    assert list(found) == ["socket", "shared"]
    for figures in found.values():
        assert figures["1"]["p50_ms"] > 0
        assert figures["8"]["per_second"] > 0
    (told,) = claims
    assert told["value"] == found["socket"]["8"]["cpu_ms"] - found["shared"]["8"]["cpu_ms"]


def test_a_saturated_service_is_split_by_stage(saturated: dict[str, Any]) -> None:
    assert list(saturated) == ["redis", "lmdb"]
    for figures in saturated.values():
        assert figures["candidates_per_s"] == 200 * figures["per_second"] > 0
        towers = figures["user_cpu_ms"] + figures["candidate_cpu_ms"]
        assert figures["each_cpu_ms"][0] == pytest.approx(towers + figures["rest_cpu_ms"])
        assert figures["state_hit_share"] == 0
        parts = figures["split_cpu_ms"]
        assert sum(parts.values()) == pytest.approx(towers + figures["rest_cpu_ms"])
    bounds = [(claim["op"], claim["bound"]) for claim in service.PARTS["saturated"].claims(saturated)]
    assert bounds == [("<=", 0.6), ("<=", 0.45)]


def test_the_cost_of_a_request_is_a_line(lab: Lab) -> None:
    found, claims = measure(lab, "linear")
    assert list(found) == ["lmdb"]
    assert list(found["lmdb"]["counts"]) == list(TINY.counts)
    assert len(found["lmdb"]["fit"]["cpu_ms"]["residuals_ms"]) == len(TINY.counts)
    assert [claim["op"] for claim in claims] == ["<=", ">="]


def test_an_open_loop_runs_at_shares_of_saturation(lab: Lab) -> None:
    found, claims = measure(lab, "open")
    shares = found["lmdb"]["shares"]
    assert list(shares) == [0.5, 0.7, 0.9]
    assert shares[0.7]["p99_over_median"] == shares[0.7]["p99_ms"] / shares[0.7]["p50_ms"]
    assert claims[0]["value"] == shares[0.7]["p99_over_median"]
    assert shares[0.5]["requests"] < shares[0.9]["requests"]


def test_small_requests_are_told_apart_from_large_ones(lab: Lab) -> None:
    found, claims = measure(lab, "mixed")
    assert list(found["by_candidates"]) == [50, 200, 500, 2000]
    assert found["small_queue"]["requests"] == found["batch"]["requests"] == found["by_candidates"][50]["requests"]
    assert claims[0]["value"] == found["small_queue"]["p99_ms"] / found["batch"]["max_ms"]


def test_kept_states_are_found_and_change_no_answer(lab: Lab) -> None:
    found, claims = measure(lab, "cache")
    assert found["zipf"]["hit_share"] > 0.3
    assert found["fresh"]["hit_share"] == 0
    assert found["zipf"]["off"]["state_hit_share"] == 0
    assert found["different_answers"] == 0
    assert [claim["bound"] for claim in claims] == [1.0, 1.03, 0]


def test_answers_that_lack_something_are_no_measurement(lab: Lab) -> None:
    strangers = lab.bodies([5], 50, users=3 * TINY.users)
    with pytest.raises(BenchError, match=r"degraded answers: .'no_history'"):
        lab.service("lmdb").block(strangers, 1, 0.2, keep_every=1)


def test_a_report_holds_what_was_asked_for(artifact: Path) -> None:
    report = service.measure(artifact, ["workers", "users"], TINY)
    assert report["bench"] == "service"
    assert list(report["results"]["workers"]["workers"]) == [1, 2]
    assert list(report["results"]["users"]["lmdb"]["stored"]) == [20, 80]
    assert [(claim["op"], claim["bound"]) for claim in report["claims"]][:2] == [(">=", 0.9), ("<=", 1.1)]
    assert report["settings"]["few_users"] == 20
