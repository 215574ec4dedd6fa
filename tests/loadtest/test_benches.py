"""The benches run, and say what they measured."""

from __future__ import annotations

from pathlib import Path

from loadtest.bench import engine, prepare, quality
from model.datasets.prepared import Prepared
from model.datasets.simulator import simulate
from model.figures import claim


def test_the_engine_bench_measures_both_ways_on_the_same_answers(artifact: Path) -> None:
    report = engine.run(artifact, threads=1, counts=[1, 50], device="cpu", quick=True)
    assert [row["candidates"] for row in report["results"]["towers"]] == [1, 50, 500]
    against = report["results"]["user_once_against_tiled"]
    assert against["greatest_difference"] <= 1e-6
    assert against["ratio"] == against["tiled_ms"] / against["user_once_ms"]
    assert report["settings"]["provider"] == "cpu"
    assert [c["op"] for c in report["claims"]] == [">=", ">=", "<=", ">=", ">="]


def test_the_quality_bench_compares_all_models(prepared: Prepared) -> None:
    report = quality.run(prepared.path, seeds=1, quick=True)
    click = report["results"]["ctr"]
    assert set(click["models"]) == {"farm", "farm_frozen", "ple", "lightgbm_static", "lightgbm_counters"}
    for figures in click["models"].values():
        low, high = figures["auc"]["interval"]
        assert low < figures["auc"]["mean"] < high
    difference = click["paired"]["farm - ple"]["auc"]["difference"]
    assert difference == click["models"]["farm"]["auc"]["mean"] - click["models"]["ple"]["auc"]["mean"]


def test_the_prepare_bench_measures_a_process_of_its_own(tmp_path: Path) -> None:
    report = prepare.run(events=50_000_000, data=None, quick=True)
    figures = report["results"]
    assert 0.5 * prepare.QUICK_EVENTS < figures["events"] < 2 * prepare.QUICK_EVENTS
    assert 0.02 < figures["peak_gib"] < 2
    assert figures["output_bytes"] > 20 * figures["events"]
    assert figures["events_per_s"] == figures["events"] / figures["seconds"]
    assert [c["op"] for c in report["claims"]] == ["<=", "<="]
    assert report["claims"][0]["holds"]


def test_the_prepare_bench_takes_logs_that_are_there(tmp_path: Path) -> None:
    simulate(tmp_path / "logs", users=60, days=3)
    report = prepare.run(events=1, data=tmp_path / "logs", quick=False)
    assert report["settings"]["simulated"] is False
    assert report["results"]["input_bytes"] > 0
    assert "simulated_events_per_s" not in report["results"]


def test_a_claim_holds_or_not() -> None:
    assert claim("x", 2.0, ">=", 2.0)["holds"]
    assert not claim("x", 2.0, ">", 2.0)["holds"]
    assert not claim("x", None, ">=", 0.0)["holds"]
