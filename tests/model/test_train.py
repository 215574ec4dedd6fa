"""Training: deterministic, honest about labels, dropout and views."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MakeModel
from training import SETTINGS, make_tiny, same, trained

from feature_store.schema import MISSING
from model.config import ModelConfig, TrainConfig, parse_settings, split_settings
from model.datasets.prepared import Prepared
from model.datasets.samples import Batch, gather
from model.evaluate import batch_logits, measure, predict, tensors
from model.train import Run, RunError, load_model, require_view, total_loss, train
from model.train.run import best_epoch


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("arch", ["farm", "ple"])
def test_training_is_determined_by_its_seed(tiny: Prepared, tmp_path: Path, arch: str) -> None:
    runs = {
        name: trained(tiny, tmp_path / name, arch=arch, epochs=1, seed=seed)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    }
    assert same(runs["a"], runs["b"])
    assert not same(runs["a"], runs["c"])


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
    assert best_epoch(run, config) == best
    for epoch in epochs:  # the validation day has no positives
        epoch["valid"] = {"ctr": {"auc": None, "gauc": None}}
    epochs[2]["loss"] = 0.5
    assert best_epoch(run, config) == 2


def planted(data: Prepared) -> Prepared:
    """The same samples, their first three labels given by the page, the user's group and the author's tag; the page is
    learnt last, and the first label chooses the epoch."""
    samples = dict(data.samples)
    group = data.users["activity_group"][samples["user_row"]]
    seen = np.stack([samples["page"], group, samples["tag"]], axis=1)  # [N, 3]
    labels = np.array(samples["labels"])
    labels[:, :3] = seen > np.median(seen, axis=0)
    return replace(data, samples=samples | {"labels": labels})


@pytest.mark.parametrize("arch", ["farm", "ple"])
def test_what_every_tower_sees_is_learnt(prepared: Prepared, tmp_path: Path, arch: str) -> None:
    data = planted(prepared)
    train(data, tmp_path, {**SETTINGS, "arch": arch, "epochs": 2}, quiet=True)
    rows = data.rows("test")
    metrics = measure(data, rows, predict(load_model(tmp_path)[1], data, rows))
    for task in data.view.tasks[:3]:
        figure = metrics[task].auc
        assert figure is not None
        assert figure > 0.8, task


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
    model, batch = make_model(), gather(tiny, tiny.rows("test")[:24])
    users, samples = len(batch.user_rows), len(batch.labels)
    state, _ = model.user_state(**tensors(batch))
    tiles = torch.from_numpy(batch.candidates)[None].expand(users, -1, -1)
    every = model.candidate_logits(state, tiles, torch.arange(users))  # [U, B, T]
    own = every[torch.from_numpy(batch.request), torch.arange(samples)]
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
