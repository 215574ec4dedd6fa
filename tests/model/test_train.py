"""Training: deterministic, to be gone on with after any stop, honest about labels, dropout and views."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MakeModel

from feature_store.schema import MISSING
from model import train as train_module
from model.config import ModelConfig, TrainConfig, parse_settings, split_settings
from model.datasets.prepared import Prepared
from model.datasets.samples import Batch, gather
from model.datasets.simulated import prepare_simulated
from model.datasets.simulator import simulate
from model.evaluate import batch_logits, measure, predict, tensors
from model.train import Run, RunError, load_model, require_view, total_loss, train

SETTINGS = {"epochs": 3, "patience": 3, "batch_size": 64, "learning_rate": 3e-3, "arch": "ple"}
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("tiny")
    made = simulate(folder / "logs", users=30, days=4, seed=1)
    return prepare_simulated(folder / "logs", folder / "prepared", made.last_day)


def trained(data: Prepared, folder: Path, **settings: Any) -> Weights:
    train(data, folder, {**SETTINGS, **settings}, quiet=True)
    weights: Weights = torch.load(folder / "model.pt", weights_only=True)
    return weights


def same(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("arch", ["farm", "ple"])
def test_training_is_determined_by_its_seed(tiny: Prepared, tmp_path: Path, arch: str) -> None:
    runs = {
        name: trained(tiny, tmp_path / name, arch=arch, epochs=1, seed=seed)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    }
    assert same(runs["a"], runs["b"])
    assert not same(runs["a"], runs["c"])


# Stopped and gone on with


@pytest.fixture(scope="module")
def uninterrupted(tiny: Prepared, tmp_path_factory: pytest.TempPathFactory) -> tuple[Weights, Run]:
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


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        *((train_module, "_epoch", call) for call in (1, 2, 3)),
        *((train_module, "total_loss", call) for call in (3, 8)),
        *((train_module, "_save_tensors", call) for call in (1, 2, 3, 4)),
        *((Run, "save", call) for call in (1, 2, 3, 4)),
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
            trained(tiny, tmp_path)
    expected, run = uninterrupted
    assert same(trained(tiny, tmp_path), expected)
    again = Run.load(tmp_path)
    assert again.finished
    assert again.best_epoch == run.best_epoch
    assert [epoch["loss"] for epoch in again.epochs] == [epoch["loss"] for epoch in run.epochs]


def test_a_run_of_other_settings_is_not_gone_on_with(
    tiny: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "_epoch", fails_at(2, train_module._epoch))
        with pytest.raises(KeyboardInterrupt):
            trained(tiny, tmp_path / "stopped", seed=1)
    assert same(trained(tiny, tmp_path / "stopped", epochs=1), trained(tiny, tmp_path / "fresh", epochs=1))


# Which epoch


def test_training_stops_when_validation_gets_no_better(tiny: Prepared, tmp_path: Path) -> None:
    """Without a learning rate every epoch is as good as the first."""
    run = train(tiny, tmp_path, {**SETTINGS, "epochs": 9, "patience": 2, "learning_rate": 0.0}, quiet=True)
    assert len(run.epochs) == 3
    assert run.best_epoch == 0
    assert run.finished


@pytest.mark.parametrize(("stop_on", "best"), [("auc", 1), ("gauc", 2), ("auc+gauc", 0)])
def test_the_figure_that_chooses_the_epoch(tiny: Prepared, stop_on: str, best: int) -> None:
    figures = [(0.70, 0.70), (0.75, 0.60), (0.60, 0.75)]
    epochs = [{"loss": 1.0, "valid": {"ctr": {"auc": auc, "gauc": gauc}}} for auc, gauc in figures]
    run = Run({}, tiny.view, tiny.schema, "", {}, epochs)
    config = TrainConfig(stop_on=stop_on)  # type: ignore[arg-type]
    assert train_module._best(run, config) == best
    for epoch in epochs:  # the validation day has no positives
        epoch["valid"] = {"ctr": {"auc": None, "gauc": None}}
    epochs[2]["loss"] = 0.5
    assert train_module._best(run, config) == 2


@pytest.mark.parametrize("arch", ["farm", "ple"])
def test_one_epoch_ranks_clearly_better_than_chance(prepared: Prepared, tmp_path: Path, arch: str) -> None:
    train(prepared, tmp_path, {**SETTINGS, "arch": arch, "epochs": 1}, quiet=True)
    rows = prepared.rows("test")
    metrics = measure(prepared, rows, predict(load_model(tmp_path)[1], prepared, rows))
    for task, least in (("ctr", 0.56), ("etr", 0.57), ("lvtr", 0.58)):
        figure = metrics[task].auc
        assert figure is not None
        assert figure > least, task


def test_predictions_are_in_the_order_of_their_rows(tiny: Prepared, make_model: MakeModel) -> None:
    model = make_model().float()
    rows = np.random.default_rng(0).permutation(tiny.rows("test"))[:50]
    whole = predict(model, tiny, rows)
    assert whole.dtype == np.float32
    single = np.concatenate([predict(model, tiny, rows[i : i + 1]) for i in range(50)])
    np.testing.assert_allclose(predict(model, tiny, rows, batch_size=7), whole, atol=1e-6)
    np.testing.assert_allclose(single, whole, atol=1e-6)
    assert predict(model, tiny, rows[:0]).shape == (0, len(tiny.view.tasks))


# Loss


def test_labels_that_are_not_known_change_nothing(tiny: Prepared, make_model: MakeModel) -> None:
    batch = gather(tiny, tiny.rows("train")[:64])
    known = np.random.default_rng(0).random(batch.known.shape) < 0.5
    partly, model = replace(batch, known=known), make_model()
    flipped = replace(partly, labels=np.where(known, batch.labels, 1 - batch.labels))
    assert total_loss(model, partly).item() == total_loss(model, flipped).item()
    assert total_loss(model, partly).item() != total_loss(model, batch).item()


def test_unknown_labels_of_prepared_are_masked(tiny: Prepared) -> None:
    rows = tiny.rows("train")[:10]
    labels = np.array(tiny.samples["labels"])
    labels[rows[3], 2] = np.iinfo(labels.dtype).min
    batch = gather(replace(tiny, samples={**tiny.samples, "labels": labels}), rows)
    assert not batch.known[3, 2]
    assert batch.labels[3, 2] == 0
    assert batch.known.sum() == batch.known.size - 1


def test_align_detach_fixes_the_live_side(tiny: Prepared, make_model: MakeModel) -> None:
    batch = gather(tiny, tiny.rows("train")[-64:])
    for detach in (False, True):
        model = make_model(align_detach=detach)
        total_loss(model, batch).backward()
        assert model.farm is not None
        assert model.farm.live_preference is not None
        assert model.farm.video_preference is not None
        grads = [p.grad for p in model.farm.live_preference.parameters()]
        assert all(g is None for g in grads) == detach
        assert all(p.grad is not None and p.grad.any() for p in model.farm.video_preference.parameters())


# Dropout


def logits_of(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    return batch_logits(model, batch)[0]  # type: ignore[arg-type]


RATES = ("dropout", "field_missing_rate", "id_missing_rate", "record_missing_rate")


@pytest.mark.parametrize("rate", RATES)
def test_dropouts_happen_in_training_only(tiny: Prepared, make_model: MakeModel, rate: str) -> None:
    batch = gather(tiny, tiny.rows("train")[-64:])
    model = make_model(**{**dict.fromkeys(RATES, 0.0), rate: 0.3})
    plain = make_model(**dict.fromkeys(RATES, 0.0))
    torch.manual_seed(0)
    assert not torch.equal(logits_of(model.train(), batch), logits_of(model, batch))
    assert torch.equal(logits_of(model.eval(), batch), logits_of(plain.train(), batch))
    plain.eval()


def test_a_dropped_record_is_an_empty_history_and_unknown_attributes(tiny: Prepared, make_model: MakeModel) -> None:
    """All records dropped is what a degraded answer reads, and takes no part in the contrastive loss."""
    batch = gather(tiny, tiny.rows("train")[-64:])
    model = make_model(**{**dict.fromkeys(RATES, 0.0), "record_missing_rate": 1.0})
    candidates = batch.candidates.copy()
    kept = [tiny.view.columns("candidate").index(name) for name in ("author_id", "live_id")]
    candidates[:, [c for c in range(candidates.shape[1]) if c not in kept]] = MISSING
    empty = np.zeros_like(batch.users.video_length)
    degraded = replace(batch, users=replace(batch.users, video_length=empty, live_length=empty), candidates=candidates)
    dropped, preferences = batch_logits(model.train(), batch)
    assert preferences is not None
    assert not preferences.takes_part.any()
    torch.testing.assert_close(dropped, logits_of(model.eval(), degraded), atol=1e-12, rtol=0)


@pytest.mark.parametrize("settings", [{}, {"arch": "ple"}, {"spectrum": "padded"}, {"spectrum": "count"}])
def test_trimmed_batches_give_the_same_logits(tiny: Prepared, make_model: MakeModel, settings: dict) -> None:
    rows = tiny.rows("train")[:40]  # early, so histories are short
    full, trimmed, model = gather(tiny, rows), gather(tiny, rows, trim=True), make_model(**settings)
    assert trimmed.users.live.shape[1] < full.users.live.shape[1]
    torch.testing.assert_close(logits_of(model, full), logits_of(model, trimmed), atol=1e-12, rtol=0)


def test_batch_logits_are_those_of_tiles(tiny: Prepared, make_model: MakeModel) -> None:
    """A candidate of a batch scores as it does among others of its user."""
    model, batch = make_model(), gather(tiny, tiny.rows("test")[:5])
    state, _ = model.user_state(**tensors(batch))
    tiles = torch.from_numpy(batch.candidates)[None].expand(5, -1, -1)
    every = model.candidate_logits(state, tiles, torch.arange(5))
    own = every[torch.arange(5), torch.arange(5)]
    torch.testing.assert_close(logits_of(model, batch), own, atol=1e-12, rtol=0)


# Refusals


def test_data_of_another_view_is_refused(tiny: Prepared, tmp_path: Path) -> None:
    trained(tiny, tmp_path, epochs=1)
    run, _ = load_model(tmp_path)
    require_view(run, tiny)
    with pytest.raises(RunError, match="view"):
        require_view(run, replace(tiny, view=tiny.view.model_copy(update={"history_length": 20})))


def test_a_folder_without_a_run_is_refused(tiny: Prepared, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no run\.json"):
        load_model(tmp_path)
    Run({}, tiny.view, tiny.schema, "", {}).save(tmp_path)
    with pytest.raises(RunError, match=r"no model\.pt"):
        load_model(tmp_path)


def test_training_needs_samples(tiny: Prepared, tmp_path: Path) -> None:
    info = tiny.info.model_copy(update={"splits": {**tiny.info.splits, "train": (0, 0)}})
    with pytest.raises(RunError, match="no training samples"):
        train(replace(tiny, info=info), tmp_path, SETTINGS, quiet=True)


@pytest.mark.parametrize(
    ("pair", "names"),
    [
        ("cutoff", "cutoff"),
        ("cutof=3", "cutof"),
        ("cutoff=three", "cutoff"),
        ("spectrum=round", "spectrum"),
        ("fuse=perhaps", "fuse"),
        ("learning_rate=fast", "learning_rate"),
        ("stop_on=accuracy", "stop_on"),
    ],
)
def test_a_bad_setting_is_named(pair: str, names: str) -> None:
    with pytest.raises(ValueError, match=rf"--set '?{names}"):
        parse_settings([pair])


def test_settings_are_typed() -> None:
    pairs = ["fuse=off", "align=1", "cutoff=3", "learning_rate=1e-4", "arch=ple", "stop_on=auc+gauc"]
    settings = parse_settings(pairs)
    model, training = split_settings(settings)
    assert model == ModelConfig(fuse=False, align=True, cutoff=3, arch="ple")
    assert training == TrainConfig(learning_rate=1e-4, stop_on="auc+gauc")


@pytest.mark.parametrize("settings", [{"cutoff": 4}, {"cutoff": 0}, {"temperature": 0.0}, {"widht": 3}])
def test_impossible_settings_are_named(settings: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        split_settings(settings)
