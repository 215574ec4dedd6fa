"""A small study: real runs of one epoch, its study.json written by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from model.calibrate import fit_calibration
from model.datasets.prepared import Prepared
from model.evaluate import measure, predict
from model.train import load_model, train

TRAINING = {"epochs": 1, "batch_size": 128, "learning_rate": 3e-3, "expert_width": 16}
TRAINED_ON = 1500  # samples
VARIANTS: dict[str, tuple[dict[str, Any], int]] = {  # settings and seeds
    "ple": ({"arch": "ple"}, 1),
    "farm": ({"arch": "farm"}, 2),
    "align_weight=0": ({"arch": "farm", "align_weight": 0.0}, 1),
}


def shortened(data: Prepared) -> Prepared:
    """The data with its last training samples only: the runs need not be good."""
    start, stop = data.info.splits["train"]
    splits = {**data.info.splits, "train": (max(start, stop - TRAINED_ON), stop)}
    return replace(data, info=data.info.model_copy(update={"splits": splits}))


def run_of(data: Prepared, folder: Path, settings: dict[str, Any]) -> np.ndarray:
    """Train, calibrate and predict as `farm study` does; probabilities of the test samples."""
    train(shortened(data), folder, {**TRAINING, **settings}, quiet=True)
    _, model = load_model(folder)
    rows = data.rows("valid")
    fit_calibration(data.view.tasks, predict(model, data, rows), np.asarray(data.samples["labels"][rows])).save(
        folder / "calibration.json"
    )
    scores = predict(model, data, data.rows("test"))
    np.save(folder / "test.npy", scores)
    return scores


def results_of(data: Prepared, per_seed: list[np.ndarray]) -> dict[str, Any]:
    figures = [measure(data, data.rows("test"), scores) for scores in per_seed]
    results: dict[str, Any] = {}
    for task in data.view.tasks:
        results[task] = {}
        for metric in ("auc", "uauc", "gauc"):
            seeds = [getattr(of[task], metric) for of in figures]
            known = [value for value in seeds if value is not None]
            mean, std = (float(np.mean(known)), float(np.std(known))) if known else (None, None)
            results[task][metric] = {"mean": mean, "std": std, "seeds": seeds}
    return results


def compared(task: str, metric: str, difference: float, reach: float, group: str | None = None) -> dict[str, Any]:
    low, high = difference - reach, difference + reach
    about = {"a": "farm", "b": "ple", "task": task, "metric": metric, "group": group, "difference": difference}
    answer = {"interval": [low, high], "interval_plain": [low, high], "p": 0.01, "p_holm": 0.02}
    return {**about, **answer, "seeds": [difference, difference], "family": "base"}


def study_of(prepared: Prepared, workshop: Path) -> Path:
    """The study's folder in the session's workshop, made when it is first asked for."""
    folder = workshop / "report_study"
    if not (folder / "study.json").is_file():
        _make(prepared, folder)
    return folder


def _make(prepared: Prepared, folder: Path) -> None:
    results = {}
    for name, (settings, seeds) in VARIANTS.items():
        runs = [run_of(prepared, folder / "runs" / name / str(s), {**settings, "seed": s}) for s in range(seeds)]
        results[name] = results_of(prepared, runs)
    names, tasks = prepared.info.group_names, prepared.view.tasks
    auc = {"auc": {"mean": 0.6543, "std": 0.01, "seeds": [0.6543]}}
    record = {
        "study": {"seeds": 2, "command": "farm study --data prepared --out study --variant <b>"},
        "environment": {"python": "3.11.2", "hostname": "secret-machine", "packages": {"numpy": "2.1.0"}},
        "data": {"source": prepared.info.source},
        "variants": {
            name: {"settings": {**TRAINING, **settings}, "parameters": {"total": 3210, "tables": 2000, "dense": 1210}}
            for name, (settings, _) in VARIANTS.items()
        },
        "results": results,
        "groups": {name: {group: dict.fromkeys(tasks, auc) for group in names} for name in ("ple", "farm")},
        "bounds": {"truth": dict.fromkeys(tasks, 0.99), "oracle": {tasks[0]: 0.98765}},
        "comparisons": [
            compared("ctr", "auc", 0.01234, 0.002),
            compared("etr", "auc", -0.00321, 0.01),
            *(compared("ctr", "auc", 0.0444, 0.001, group) for group in (*names, "low+mid - high+full")),
        ],
        "claims": [
            {"claim": "FARM > ple", "value": 0.0104, "op": ">", "bound": 0.0, "holds": True},
            {"claim": "something else", "value": None, "op": ">", "bound": 0.0, "holds": False},
            {"claim": "a share", "value": 0.5, "op": ">=", "bound": 0.9, "holds": False, "goal": True},
        ],
    }
    (folder / "study.json").write_text(json.dumps(record))
