"""The benches run, and say what they measured."""

from __future__ import annotations

from pathlib import Path

from loadtest.bench import engine, quality
from loadtest.bench.report import claim
from model.datasets.prepared import Prepared


def test_the_engine_bench_measures_both_ways_on_the_same_answers(artifact: Path) -> None:
    report = engine.run(artifact, threads=1, counts=[1, 50], device="cpu", quick=True)
    assert [row["candidates"] for row in report["results"]["towers"]] == [1, 50]
    against = report["results"]["user_once_against_tiled"]
    assert against["greatest_difference"] <= 1e-6
    assert against["ratio"] == against["tiled_ms"] / against["user_once_ms"]
    assert report["settings"]["provider"] == "cpu"
    assert [c["op"] for c in report["claims"]] == [">="]


def test_the_quality_bench_compares_all_models(prepared: Prepared) -> None:
    report = quality.run(prepared.path, seeds=1, quick=True)
    click = report["results"]["ctr"]
    assert set(click["models"]) == {"farm", "farm_frozen", "ple", "lightgbm_static", "lightgbm_counters"}
    for figures in click["models"].values():
        low, high = figures["auc"]["interval"]
        assert low < figures["auc"]["mean"] < high
    difference = click["paired"]["farm - ple"]["auc"]["difference"]
    assert difference == click["models"]["farm"]["auc"]["mean"] - click["models"]["ple"]["auc"]["mean"]


def test_a_claim_holds_or_not() -> None:
    assert claim("x", 2.0, ">=", 2.0)["holds"]
    assert not claim("x", 2.0, ">", 2.0)["holds"]
    assert not claim("x", None, ">=", 0.0)["holds"]
