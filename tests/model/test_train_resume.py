"""A run that was stopped, in whatever moment and by whatever, goes on to what it would have been."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from training import SETTINGS, Weights, make_tiny, same, trained, weights_of

from model.datasets.logs import prepare_logs
from model.datasets.prepared import Prepared
from model.train import Run, RunError, checkpoint, load_model, loop, refuse_other, train
from model.train.checkpoint import resume
from model.train.distributed import Ranks

EVERY = {"checkpoint_every": 3}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def uninterrupted(tiny: Prepared, tmp_path_factory: pytest.TempPathFactory) -> tuple[Weights, Run]:
    """Without checkpoints inside epochs: they change nothing."""
    folder = tmp_path_factory.mktemp("whole")
    return trained(tiny, folder), Run.load(folder)


def fails_at(call: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, but for its `call`-th call, which is Ctrl-C."""
    calls = iter(range(1, 1000))

    def failing(*arguments: Any, **named: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return function(*arguments, **named)

    return failing


def is_that_run(folder: Path, expected: tuple[Weights, Run]) -> bool:
    weights, run = expected
    again = Run.load(folder)
    losses = [[epoch["loss"] for epoch in r.epochs] for r in (again, run)]
    return (
        again.finished
        and again.best_epoch == run.best_epoch
        and losses[0] == losses[1]
        and same(weights_of(folder), weights)
    )


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        *((loop, "_pass", call) for call in (1, 2, 3)),
        *((loop, "combined_loss", call) for call in (2, 4, 16)),
        (loop, "fit_calibration", 1),
        (loop, "save_tensors", 1),
        *((checkpoint, "save_tensors", call) for call in (1, 2, 5)),
        *((Run, "save", call) for call in (1, 2, 3, 4, 5)),
    ],
)
def test_a_stopped_run_goes_on_to_the_same_weights(
    tiny: Prepared,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: tuple[Weights, Run],
    owner: object,
    name: str,
    call: int,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fails_at(call, getattr(owner, name)))
        with pytest.raises(KeyboardInterrupt):
            trained(tiny, tmp_path, **EVERY)
    trained(tiny, tmp_path, **EVERY)
    assert is_that_run(tmp_path, uninterrupted)


def test_a_killed_process_goes_on_inside_its_epoch(
    tiny: Prepared, tmp_path: Path, uninterrupted: tuple[Weights, Run]
) -> None:
    """SIGKILL leaves no time to write anything: it comes in the second epoch, two steps after a checkpoint."""
    steps = -(-len(tiny.rows("train")) // SETTINGS["batch_size"])
    arguments = [str(tiny.path), str(tmp_path), str(steps + 6)]
    program = Path(__file__).with_name("killed_training.py")
    done = subprocess.run([sys.executable, str(program), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["places"][0]["step"] == 3
    trained(tiny, tmp_path, **EVERY)
    assert is_that_run(tmp_path, uninterrupted)


def test_a_run_of_other_settings_is_not_gone_on_with(
    tiny: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_pass", fails_at(2, loop._pass))
        with pytest.raises(KeyboardInterrupt):
            trained(tiny, tmp_path / "stopped", seed=1)
    assert same(trained(tiny, tmp_path / "stopped", epochs=1), trained(tiny, tmp_path / "fresh", epochs=1))


def test_an_epoch_is_gone_on_with_by_as_many_processes(
    tiny: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_tensors", fails_at(2, checkpoint.save_tensors))
        with pytest.raises(KeyboardInterrupt):
            trained(tiny, tmp_path, **EVERY)
    path = tmp_path / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    torch.save(state | {"places": state["places"] * 2}, path)
    with pytest.raises(RunError, match="with 2 processes"):
        train(tiny, tmp_path, SETTINGS | EVERY, quiet=True)


def test_lazy_moments_are_gone_on_with(tiny: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SparseAdam's too."""
    lazy = {**EVERY, "sparse_rows": 1000, "epochs": 1}
    with monkeypatch.context() as patch:
        patch.setattr(loop, "combined_loss", fails_at(5, loop.combined_loss))
        with pytest.raises(KeyboardInterrupt):
            trained(tiny, tmp_path / "stopped", **lazy)
    assert same(trained(tiny, tmp_path / "stopped", **lazy), trained(tiny, tmp_path / "whole", **lazy))


def test_a_folder_without_a_checkpoint_is_begun_anew(tmp_path: Path) -> None:
    assert resume(tmp_path, None, {}, None, None, Ranks()) is None  # type: ignore[arg-type]


def test_a_finished_run_that_is_trained_anew_goes_on_too(
    tiny: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: tuple[Weights, Run]
) -> None:
    """Killed inside its first epoch; and what the finished one left is not taken for its own."""
    trained(tiny, tmp_path, **EVERY)
    passes: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(loop, "combined_loss", fails_at(6, loop.combined_loss))
        with pytest.raises(KeyboardInterrupt):
            trained(tiny, tmp_path, **EVERY)
    assert not Run.load(tmp_path).finished
    with pytest.raises(RunError, match="stopped before its first epoch ended"):
        load_model(tmp_path)
    steps, loss = -(-len(tiny.rows("train")) // SETTINGS["batch_size"]), loop.combined_loss
    monkeypatch.setattr(loop, "combined_loss", lambda *given: passes.append(1) or loss(*given))
    trained(tiny, tmp_path, **EVERY)
    assert len(passes) == 3 * steps - 3
    assert is_that_run(tmp_path, uninterrupted)


def test_a_run_stopped_before_its_first_checkpoint_is_not_overwritten(
    tiny: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_pass", fails_at(1, loop._pass))
        with pytest.raises(KeyboardInterrupt):
            trained(tiny, tmp_path)
    refuse_other(tmp_path, SETTINGS, tiny)
    with pytest.raises(RunError, match="holds a run with arch=ple, not farm; give another folder"):
        refuse_other(tmp_path, SETTINGS | {"arch": "farm"}, tiny)


def test_a_run_on_other_data_is_not_gone_on_with(
    tiny: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same size and view: only a label is another."""
    logs = tmp_path / "logs"
    shutil.copytree(tiny.path.parent / "logs", logs)
    events = pl.read_parquet(logs / "live_events.parquet")
    turned = pl.when(pl.int_range(pl.len()) == 0).then(1 - pl.col("like")).otherwise("like").cast(events["like"].dtype)
    events.with_columns(like=turned).write_parquet(logs / "live_events.parquet")
    other = prepare_logs(logs, tmp_path / "prepared", tiny.info.test_from)
    assert other.info.counts == tiny.info.counts
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_pass", fails_at(2, loop._pass))
        with pytest.raises(KeyboardInterrupt):
            trained(tiny, tmp_path / "run")
    with pytest.raises(RunError, match=r"run: holds a run with other data than .*prepared; give another folder"):
        refuse_other(tmp_path / "run", SETTINGS, other)
    assert same(trained(other, tmp_path / "run"), trained(other, tmp_path / "fresh"))
    again = prepare_logs(tiny.path.parent / "logs", tmp_path / "again", tiny.info.test_from)
    assert again.info.digest == tiny.info.digest  # the same data prepared anew are the same
