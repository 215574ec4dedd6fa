"""`farm bench metrics` on tiny sizes: counters of several workers are exact, also when one is killed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from loadtest.bench import metrics
from loadtest.bench.metrics_cost import cost_claims
from loadtest.bench.metrics_sizes import QUICK
from loadtest.bench.parts import UnknownPartError

TINY = replace(QUICK, users=60, bodies=600, rounds=2, seconds=0.2, exact_seconds=0.5, kills=1, around_s=0.3)


def test_counters_are_exact_though_a_worker_is_killed(artifact: Path) -> None:
    report = metrics.measure(artifact, ["exact", "killed"], TINY)
    json.dumps(report)
    assert [claim["claim"] for claim in report["claims"] if not claim["holds"]] == []
    exact = report["results"]["exact"]
    assert exact["sent"] == sum(exact["answered"].values()) == sum(exact["counted"].values()) > 100
    assert set(exact["counted"]) == {200, 400, 422}
    assert report["results"]["killed"]["counted"][200] > 0


def test_the_cost_is_that_of_pairs_of_blocks(artifact: Path) -> None:
    found = metrics.measure(artifact, ["cost"], TINY)["results"]["cost"]["clients_8"]
    shares = [on / off - 1 for on, off in zip(found["each_on_cpu_ms"], found["each_off_cpu_ms"], strict=True)]
    assert len(shares) == 2
    assert found["share"] == pytest.approx(sum(shares) / 2)
    assert [one["holds"] for one in cost_claims({"clients_8": {"share": 0.03}, "clients_1": {"share": 0.04}})] == [
        True,
        False,
    ]


def test_unknown_parts_are_refused() -> None:
    with pytest.raises(UnknownPartError, match="no part 'speed'; there are cost, exact, killed"):
        metrics.run(None, "speed", quick=True)
