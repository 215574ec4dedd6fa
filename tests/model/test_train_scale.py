"""Big tables, fewer negatives, other precisions and devices."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MakeModel
from training import SETTINGS, make_tiny, trained

from feature_store.view import PARTS, ModelView
from model.artifact.calibration import Calibration
from model.artifact.engine import Engine
from model.config import ModelConfig, TrainConfig
from model.datasets.prepared import Prepared
from model.datasets.samples import gather
from model.evaluate import predict
from model.export import export_run
from model.farm import Ranker
from model.tensors import Towers, logits, to_tensors
from model.train import Run, RunError, load_model, require_view, train, xtr_loss
from model.train.loss import combined_loss
from model.train.negatives import calibration_rate, negative_weight, rows_of_epoch
from model.train.optimiser import Optimisers
from model.train.precision import autocast, choose_device
from model.train.tables import make_sparse, with_table_rows

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


# Tables


def rows_of(view: ModelView) -> dict[str, int]:
    return {view.table_name(part, field): field.table_rows for part, field in view.all_fields()}


def test_tables_are_sized_by_configuration(view: ModelView) -> None:
    wider = with_table_rows(view, "author_id:200,user_id:50, candidate.live_id:31")
    changed = {"author_id": 200, "user.user_id": 50, "candidate.live_id": 31}
    assert rows_of(wider) == rows_of(view) | changed
    assert with_table_rows(view, "") == view


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("author:5", "no table 'author'; there are author_id"),
        ("author_id", "write name:rows"),
        ("author_id:1", "write name:rows"),
        ("author_id:2e5", "write name:rows"),
        ("video.lag:30", "its buckets give"),
    ],
)
def test_a_bad_table_size_is_named(view: ModelView, text: str, says: str) -> None:
    with pytest.raises(ValueError, match=f"table_rows: .*{says}"):
        with_table_rows(view, text)


def test_a_run_with_sparse_tables_of_its_own_sizes_works_to_the_end(tiny: Prepared, tmp_path: Path) -> None:
    """Trained, evaluated on the same data, exported."""
    sizes = {"table_rows": "author_id:5000,user_id:3000", "sparse_rows": 3000}
    trained(tiny, tmp_path / "run", **sizes, epochs=1)
    run, model = load_model(tmp_path / "run")
    require_view(run, tiny)
    assert rows_of(model.view)["author_id"] == 5000
    assert len(Calibration.load(tmp_path / "run" / "calibration.json", run.view.tasks).tasks) == len(run.view.tasks)
    made = export_run(tmp_path / "run", tmp_path / "artifact")
    assert Engine.load(made.path).artifact.manifest.view == model.view


def test_sparse_tables_move_only_the_rows_that_were_read(tiny: Prepared, make_model: MakeModel) -> None:
    model = make_model(view=tiny.view).float()
    config = TrainConfig(sparse_rows=1000, learning_rate=0.01)
    optimisers = Optimisers(model, config)
    before = {name: table.weight.detach().clone() for name, table in model.tables.items()}
    batch = to_tensors(gather(tiny, tiny.rows("train")[-64:]))
    losses = [step(model, optimisers, batch) for _ in range(10)]
    assert losses[-1] < 0.9 * losses[0]
    read = 1 + batch.users["user"][:, 0].unique().numel()  # users; several may share a row, row 0 is not read
    moved = {name: int((table.weight != before[name]).any(1).sum()) for name, table in model.tables.items()}
    assert 0 < moved["user_user_id"] < read
    assert 0 < moved["author_id"] < len(before["author_id"]) / 4
    assert {len(before[name]) >= 1000 for name in ("user_user_id", "author_id", "candidate_live_id")} == {True}
    assert len(optimisers.sparse) == 3


def step(model: Ranker, optimisers: Optimisers, batch) -> float:  # type: ignore[no-untyped-def]
    optimisers.zero_grad()
    loss = combined_loss(model.config, batch, *logits(Towers.of(model), batch))
    loss.backward()  # type: ignore[no-untyped-call]
    optimisers.step()
    return loss.item()


def test_sparse_and_dense_tables_begin_alike(tiny: Prepared, make_model: MakeModel) -> None:
    """The first step of Adam is the same where a gradient is much above epsilon, which the two place differently."""
    sparse, dense = (make_model(view=tiny.view).float() for _ in range(2))
    for model, sparse_rows in ((sparse, 1000), (dense, 10**9)):
        step(model, Optimisers(model, TrainConfig(sparse_rows=sparse_rows)), to_tensors(gather(tiny, np.arange(32))))
    for a, b in zip(sparse.parameters(), dense.parameters(), strict=True):
        if b.grad is not None:
            felt = b.grad.abs() > 1e-4
            torch.testing.assert_close(a[felt], b[felt], atol=1e-5, rtol=0)
            torch.testing.assert_close(a[b.grad == 0], b[b.grad == 0], atol=0, rtol=0)


def test_decay_of_sparse_tables_is_refused(make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match="table_weight_decay: has no sparse form"):
        make_sparse(make_model(), TrainConfig(table_weight_decay=0.1, sparse_rows=1000))
    assert make_sparse(make_model(), TrainConfig(table_weight_decay=0.1)) == []


# Negatives


def test_an_epoch_keeps_all_positives_and_a_share_of_the_others(prepared: Prepared) -> None:
    config = TrainConfig(negative_rate=0.25)
    positive = (prepared.samples["labels"][prepared.rows("train")] == 1).any(1)
    kept = [np.isin(prepared.rows("train"), rows_of_epoch(prepared, config, epoch)) for epoch in (0, 1, 0)]
    for rows in kept:
        assert rows[positive].all()
        assert rows[~positive].mean() == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / (~positive).sum()) ** 0.5)
    assert (kept[0] == kept[2]).all()
    assert (kept[0] != kept[1]).any()
    everything = rows_of_epoch(prepared, TrainConfig(), 0)
    assert np.array_equal(everything, prepared.rows("train"))


def test_weights_make_the_sampled_loss_unbiased() -> None:
    """Exactly: the sums over all ways to keep or drop each negative, by their probabilities, are those of all rows."""
    generator, rate = torch.Generator().manual_seed(0), 0.25
    scores = torch.randn(6, 2, generator=generator)
    labels = torch.tensor([[1, 0], [0, 0], [0, 0], [0, 1], [0, 0], [0, 0]]).float()
    negatives = (~labels.bool().any(1)).nonzero()[:, 0].tolist()
    sums, counts = torch.zeros(2), torch.zeros(2)
    for draw in range(2 ** len(negatives)):
        kept = [bool(draw >> i & 1) for i in range(len(negatives))]
        probability = np.prod([rate if k else 1 - rate for k in kept])
        rows = [i for i in range(6) if i not in negatives or kept[negatives.index(i)]]
        for task in range(2):
            loss, count = weighted_sum(scores[rows, task], labels[rows], task, rate)
            sums[task] += probability * loss
            counts[task] += probability * count
    known = torch.ones(6, 2, dtype=torch.bool)
    torch.testing.assert_close(counts, torch.full((2,), 6.0))
    assert float((sums / counts).sum()) == pytest.approx(float(xtr_loss(scores, labels, known)), rel=1e-5)


def weighted_sum(scores: torch.Tensor, labels: torch.Tensor, task: int, rate: float) -> tuple[float, float]:
    """Sum of weighted losses of a task, and of weights, as xtr_loss takes their quotient."""
    weight = torch.where(labels.any(1), 1.0, negative_weight(TrainConfig(negative_rate=rate)))
    known = torch.ones(len(labels), 1, dtype=torch.bool)
    mean = xtr_loss(scores[:, None], labels[:, [task]], known, weight)
    return float(mean * weight.sum()), float(weight.sum())


def test_without_weights_calibration_is_told(tiny: Prepared) -> None:
    weighted = TrainConfig(negative_rate=0.2)
    plain = replace(weighted, negative_weighting=False)
    assert (negative_weight(weighted), calibration_rate(weighted)) == (5.0, 1.0)
    assert (negative_weight(plain), calibration_rate(plain)) == (1.0, 0.2)


def test_a_run_with_fewer_negatives_predicts_the_rates_of_all(prepared: Prepared, tmp_path: Path) -> None:
    """Weighted, the mean prediction for click is much nearer to the observed rate than without weights."""
    settings = {**SETTINGS, "epochs": 1, "negative_rate": 0.2}
    rows = prepared.rows("train")
    observed = float((prepared.samples["labels"][rows, 0] == 1).mean())
    errors = {}
    for weighting in (True, False):
        folder = tmp_path / str(weighting)
        train(prepared, folder, settings | {"negative_weighting": weighting}, quiet=True)
        errors[weighting] = float(predict(load_model(folder)[1], prepared, rows)[:, 0].mean()) - observed
    assert abs(errors[True]) < errors[False] / 2


# Precision


def test_bf16_is_for_products_only(tiny: Prepared, make_model: MakeModel) -> None:
    model = make_model(view=tiny.view).float()
    batch = to_tensors(gather(tiny, tiny.rows("train")[-64:]))
    gradients, losses = [], []
    for config in (TrainConfig(), TrainConfig(precision="bf16")):
        model.zero_grad()
        with autocast(config, CPU):
            scores, preferences = logits(Towers.of(model), batch)
        loss = combined_loss(model.config, batch, scores, preferences)
        loss.backward()  # type: ignore[no-untyped-call]
        assert loss.dtype == torch.float32
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        losses.append(loss.item())
    assert scores.dtype == torch.bfloat16
    assert gradients[1].dtype == torch.float32
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1] != losses[0]
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


def test_a_bf16_run_learns_as_an_fp32_run(tiny: Prepared, tmp_path: Path) -> None:
    for precision in ("fp32", "bf16"):
        trained(tiny, tmp_path / precision, precision=precision, arch="farm", epochs=2)
    fp32, bf16 = ([e["loss"] for e in Run.load(tmp_path / p).epochs] for p in ("fp32", "bf16"))
    assert bf16 == pytest.approx(fp32, rel=0.03)
    assert bf16 != fp32
    assert all(w.dtype == torch.float32 for w in load_model(tmp_path / "bf16")[1].parameters())


@pytest.mark.parametrize("settings", [{}, {"arch": "ple"}, {"align_normalise": False}])
def test_everything_is_on_the_device_of_the_model(tiny: Prepared, settings: dict) -> None:
    """A product of the meta device with a tensor of the host is refused, as one of CUDA would be."""
    config, meta = ModelConfig(**settings), torch.device("meta")
    model = Ranker(config, tiny.view).train().to(meta)
    for rows in (tiny.rows("train")[:50], tiny.rows("train")[[0, 1, 2, 3, 4, 5, 10, 15, 20]]):  # tiles, and unequal
        batch = to_tensors(gather(tiny, rows)).to(meta)
        loss = combined_loss(config, batch, *logits(Towers.of(model), batch), negative_weight=5.0)
        loss.backward()  # type: ignore[no-untyped-call]
        assert {p.grad.device for p in model.parameters() if p.grad is not None} == {meta}


def test_what_is_not_there_is_refused(tiny: Prepared, tmp_path: Path) -> None:
    assert choose_device(TrainConfig(device="cpu")) == CPU
    with pytest.raises(RunError, match="precision=tf32"):
        train(tiny, tmp_path, {**SETTINGS, "device": "cpu", "precision": "tf32"}, quiet=True)
    if not torch.cuda.is_available():
        with pytest.raises(RunError, match="device=cuda"):
            train(tiny, tmp_path, {**SETTINGS, "device": "cuda"}, quiet=True)


@pytest.mark.parametrize(
    "wrong", [{"batch_size": 0}, {"epochs": 0}, {"checkpoint_every": -1}, {"negative_rate": 0.0}, {"sparse_rows": 0}]
)
def test_impossible_settings_are_named(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TrainConfig(**wrong)


def test_every_setting_of_a_run_is_written_down(tiny: Prepared, tmp_path: Path) -> None:
    trained(tiny, tmp_path, epochs=1)
    assert {f.name for f in dataclasses.fields(TrainConfig)} <= set(Run.load(tmp_path).settings)


@torch.no_grad()
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile on a CPU needs a C++ compiler")
def test_a_compiled_model_has_the_same_loss(tiny: Prepared, make_model: MakeModel) -> None:
    """Of a field or two per part: compiling takes seconds per field."""
    fields = {part: getattr(tiny.view, part)[:1] for part in PARTS}
    small = replace(tiny, view=tiny.view.model_copy(update=fields))
    model = make_model(view=small.view, arch="ple", levels=1, shared_experts=1).float()
    batch = to_tensors(gather(small, small.rows("train")[-64:], trim=True))
    losses = [combined_loss(model.config, batch, *logits(Towers.of(model, c), batch)).item() for c in (False, True)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
