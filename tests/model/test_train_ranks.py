"""Two real processes under torchrun: one model, its gradients averaged, the metrics of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training import RANKS_SETTINGS, make_tiny, same, weights_of

from model.datasets.prepared import Prepared
from model.train import Run, train

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def two_ranks(tiny: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what two ranks left behind."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, *TORCHRUN, str(Path(__file__).with_name("rank_of_training.py"))]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(tiny.path), str(folder)], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_ranks_end_with_the_same_weights(two_ranks: Path) -> None:
    a, b = (torch.load(two_ranks / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert same(a, b)
    assert Run.load(two_ranks / "run").finished


def test_the_ranks_gradients_are_those_of_the_whole_batch(two_ranks: Path) -> None:
    """Parts of 40 and 24 samples; and a rank that has none."""
    for rank in (0, 1):
        found = json.loads((two_ranks / f"rank{rank}.json").read_text())
        assert found["gradients"] > 50
        assert found["sparse"] == 3
        assert found["greatest_difference"] < 1e-6
        assert found["without_batch"] < 1e-7


def test_two_ranks_train_as_one_process_with_batches_twice_as_big(
    tiny: Prepared, two_ranks: Path, tmp_path: Path
) -> None:
    whole = train(tiny, tmp_path, RANKS_SETTINGS, quiet=True)
    ranks = Run.load(two_ranks / "run")
    assert ranks.settings["batch_size"] * 2 == whole.settings["batch_size"]
    for a, b in zip(ranks.epochs, whole.epochs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=0.01)
    assert ranks.epochs[1]["loss"] < ranks.epochs[0]["loss"]
    assert weights_of(two_ranks / "run").keys() == weights_of(tmp_path).keys()
