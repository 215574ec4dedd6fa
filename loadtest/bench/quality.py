"""`farm bench quality`: FARM, its base model and two LightGBM models on the test days of one PREPARED folder.

LightGBM static sees attributes and no history, LightGBM counters causal past rates too (loadtest.bench.counters).
"farm_frozen" is FARM with every history as it was when the test days began: docs/benchmarks.md says what that tells.
All models are compared on the same samples, over the same draws of users.
Letters: N test samples, B draws.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np

from loadtest.bench.counters import counter_features, static_features
from model.datasets.prepared import Prepared
from model.evaluate import predict
from model.farm import Ranker
from model.figures import claim, report
from model.metrics import MEASURABLE_POSITIVES
from model.report.degraded import frozen
from model.study.bootstrap import FIGURES, Figures, bootstrap, draw_users, interval
from model.train import load_model, train

DRAWS = 1000
TREES = 200
LIGHTGBM = {
    "objective": "binary",
    "learning_rate": 0.05,
    "num_leaves": 31,
    "min_data_in_leaf": 50,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "feature_fraction": 0.8,
    "verbose": -1,
}
PAIRS = (
    ("farm", "ple"),
    ("farm", "lightgbm_static"),
    ("farm", "lightgbm_counters"),
    ("farm_frozen", "farm"),
    ("farm_frozen", "lightgbm_static"),
)

Scores = dict[str, list[np.ndarray]]  # by model, per seed: probabilities [N, tasks]


def run(data: Path, seeds: int, quick: bool) -> dict[str, Any]:
    """Train all models with `seeds` seeds and compare them."""
    prepared = Prepared.open(data)
    scores: Scores = {"farm": [], "farm_frozen": [], "ple": []}
    for seed in range(seeds):
        farm, ple = (_trained(prepared, arch, seed, quick) for arch in ("farm", "ple"))
        scores["farm"].append(predict(farm, prepared, prepared.rows("test")))
        scores["farm_frozen"].append(predict(farm, frozen(prepared), prepared.rows("test")))
        scores["ple"].append(predict(ple, prepared, prepared.rows("test")))
    scores["lightgbm_static"] = _boosted(prepared, seeds, static_features)
    scores["lightgbm_counters"] = _boosted(prepared, seeds, _static_and_counters)
    results = {task: _compare(prepared, scores, i) for i, task in enumerate(prepared.view.tasks)}
    settings = {"source": prepared.info.source, "test_from": str(prepared.info.test_from), "seeds": seeds}
    settings |= {
        "training": prepared.info.training,
        "draws": DRAWS,
        "trees": TREES,
        "lightgbm": LIGHTGBM,
        "quick": quick,
    }
    return report("quality", settings, results, _claims(results[prepared.view.tasks[0]], prepared.view.tasks[0]))


def _trained(data: Prepared, arch: str, seed: int, quick: bool) -> Ranker:
    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, Any] = {"arch": arch, "seed": seed}
        train(data, folder, {**settings, "epochs": 1} if quick else settings)
        _, model = load_model(folder)
    return model


def _static_and_counters(data: Prepared, rows: np.ndarray) -> np.ndarray:
    return np.concatenate([static_features(data, rows), counter_features(data, rows)], axis=1)


def _boosted(data: Prepared, seeds: int, features: Callable[[Prepared, np.ndarray], np.ndarray]) -> list[np.ndarray]:
    """LightGBM per task, trained on all days before the test days; a task of one class gets a constant."""
    before = np.concatenate([data.rows("train"), data.rows("valid")])
    known, asked = features(data, before), features(data, data.rows("test"))
    labels = data.samples["labels"][before]
    return [
        np.stack([_boost(known, labels[:, t], asked, seed) for t in range(labels.shape[1])], 1) for seed in range(seeds)
    ]


def _boost(known: np.ndarray, labels: np.ndarray, asked: np.ndarray, seed: int) -> np.ndarray:
    there = labels >= 0
    if len(np.unique(labels[there])) < 2:
        return np.zeros(len(asked))
    model = lightgbm.train(
        {**LIGHTGBM, "seed": seed}, lightgbm.Dataset(known[there], labels[there]), num_boost_round=TREES
    )
    probabilities: np.ndarray = np.asarray(model.predict(asked))
    return probabilities


def _compare(data: Prepared, scores: Scores, task: int) -> dict[str, Any]:
    """Figures of every model, mean over seeds, with user-bootstrap intervals, and paired differences."""
    rows = data.rows("test")
    labels = data.samples["labels"][rows, task]
    there = labels >= 0
    positives = int(labels[there].sum())
    counts = {"positives": positives, "samples": int(there.sum())}
    if min(positives, counts["samples"] - positives) < MEASURABLE_POSITIVES:
        return {**counts, "measurable": False}
    users, pages = data.samples["user_row"][rows][there], data.samples["page"][rows][there]
    _, user_pages = np.unique(np.stack([users, pages]), axis=1, return_inverse=True)
    draws = draw_users(users, DRAWS + 1)
    drawn = {
        model: [bootstrap(s[there, task], labels[there], users, user_pages.ravel(), draws) for s in per_seed]
        for model, per_seed in scores.items()
    }
    models = {model: _summary(figures) for model, figures in drawn.items()}
    pairs = {f"{a} - {b}": _difference(drawn[a], drawn[b]) for a, b in PAIRS}
    return {**counts, "measurable": True, "models": models, "paired": pairs}


def _mean(figures: list[Figures], name: str) -> np.ndarray:
    """[B]: of each draw, the mean over seeds."""
    mean: np.ndarray = np.mean([getattr(f, name) for f in figures], axis=0)
    return mean


def _summary(figures: list[Figures]) -> dict[str, Any]:
    summary = {}
    for name in FIGURES:
        value, low, high = interval(_mean(figures, name))
        seeds = [float(getattr(f, name)[0]) for f in figures]
        summary[name] = {"mean": value, "interval": [low, high], "seeds": seeds, "std": float(np.std(seeds))}
    return summary


def _difference(a: list[Figures], b: list[Figures]) -> dict[str, Any]:
    differences = {}
    for name in FIGURES:
        value, low, high = interval(_mean(a, name) - _mean(b, name))
        differences[name] = {"difference": value, "interval": [low, high]}
    return differences


def _claims(results: dict[str, Any], task: str) -> list[dict[str, Any]]:
    if not results["measurable"]:
        return [claim(f"{task}: positives on the test days", results["positives"], ">=", MEASURABLE_POSITIVES)]
    models, paired = results["models"], results["paired"]
    low = paired["farm - ple"]["auc"]["interval"][0]
    farm, static = models["farm"]["auc"]["mean"], models["lightgbm_static"]["auc"]["mean"]
    return [
        claim(f"{task} AUC, FARM minus ple: lower end of the 95% user-bootstrap interval", low, ">", 0.0),
        claim(f"{task} AUC of FARM against LightGBM static's", farm, ">=", static),
    ]
