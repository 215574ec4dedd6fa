"""What the tests of training share: a tiny simulation, quick settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from model.datasets.logs import prepare_logs
from model.datasets.prepared import Prepared
from model.datasets.simulator import simulate
from model.train import train

SETTINGS: dict[str, Any] = {
    "epochs": 3,
    "patience": 3,
    "batch_size": 64,
    "learning_rate": 3e-3,
    "arch": "ple",
    "device": "cpu",
}
RANKS_SETTINGS: dict[str, Any] = {
    **SETTINGS,
    "arch": "farm",
    "epochs": 2,
    "learning_rate": 5e-4,  # small steps without dropouts: what differs is which samples meet
    "sparse_rows": 1000,
    "align_weight": 0.0,  # the negatives of the contrastive loss are a rank's own
    **dict.fromkeys(("dropout", "field_missing_rate", "id_missing_rate", "record_missing_rate"), 0.0),
}
Weights = dict[str, torch.Tensor]


def make_tiny(folder: Path) -> Prepared:
    made = simulate(folder / "logs", users=30, days=4, seed=1)
    return prepare_logs(folder / "logs", folder / "prepared", made.last_day)


def trained(data: Prepared, folder: Path, **settings: Any) -> Weights:
    train(data, folder, {**SETTINGS, **settings}, quiet=True)
    return weights_of(folder)


def weights_of(folder: Path) -> Weights:
    weights: Weights = torch.load(folder / "model.pt", weights_only=True)
    return weights


def same(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
