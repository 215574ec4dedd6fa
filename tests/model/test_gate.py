"""The quality gate: figures against PyTorch's, what passes, what is refused, and that nothing is left of it then."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from model.artifact.engine import Engine
from model.artifact.manifest import CANDIDATE_TOWER, Artifact
from model.datasets.prepared import Prepared
from model.evaluate import measure, predict
from model.export import gate, slates
from model.export.checked import QUALITY, convert_checked, export_checked
from model.export.gate import GateError, Limits, Loss, check_quality
from model.export.precision import write_manifest
from model.export.weights import load_graph, save_graph
from model.train import RunError, load_model

LIMITS = Limits(samples=5_000, slates=20, slate_size=40)
Change = Callable[[onnx.ModelProto], None]


@pytest.fixture(scope="module")
def fp32(artifact: Path) -> Engine:
    return Engine.load(artifact)


@pytest.fixture(scope="module")
def int8(artifact: Path, prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return convert_checked(Artifact.open(artifact), tmp_path_factory.mktemp("gate") / "int8", "int8", prepared, LIMITS)[
        0
    ]


def changed(artifact: Artifact, folder: Path, change: Change) -> Engine:
    """The artifact with another candidate tower, so that its golden outputs are not checked."""
    folder.mkdir()
    for name in artifact.manifest.files:
        (folder / name).write_bytes((artifact.path / name).read_bytes())
    tower = load_graph(artifact.path / CANDIDATE_TOWER)
    change(tower)
    save_graph(tower, folder / CANDIDATE_TOWER)
    write_manifest(artifact.manifest, folder)
    return Engine.load(folder, check=False)


def noise(tower: onnx.ModelProto) -> None:
    """Half the scale of each output of the largest product is wrong."""
    scales = [t for t in tower.graph.initializer if t.name.endswith("_scales")]
    largest = max(scales, key=lambda tensor: tensor.dims[0])
    values = onnx.numpy_helper.to_array(largest)
    wrong = values * np.random.default_rng(0).uniform(-1, 3, values.shape).astype(np.float32)
    largest.CopyFrom(onnx.numpy_helper.from_array(wrong, largest.name))


def first_task_counts_for_nothing(tower: onnx.ModelProto) -> None:
    """Probabilities of the first task a millionth of what they were: their order, and so their AUC, is the same."""
    (output,) = tower.graph.output
    (writer,) = [node for node in tower.graph.node if output.name in node.output]
    tasks = output.type.tensor_type.shape.dim[2].dim_value
    factors = np.array([1e-6] + [1.0] * (tasks - 1), np.float32)
    tower.graph.initializer.append(onnx.numpy_helper.from_array(factors, "factors"))
    writer.output[0] = "before"
    tower.graph.node.append(onnx.helper.make_node("Mul", ["before", "factors"], [output.name]))


def test_figures_are_those_of_pytorch(fp32: Engine, int8: Artifact, prepared: Prepared, run_folder: Path) -> None:
    report = check_quality(fp32, Engine.load(int8.path), prepared, LIMITS)
    _, model = load_model(run_folder)
    rows = prepared.rows("valid")
    assert report.samples == len(rows) < LIMITS.samples
    expected = measure(prepared, rows, predict(model, prepared, rows))
    for loss in report.losses:
        assert loss.fp32 == pytest.approx(getattr(expected[loss.task], loss.metric.lower()), abs=1e-4)
        assert -1 < loss.points < 1
        assert loss.fp32 != loss.converted or loss.metric != "AUC"
    measurable = {task for task, figures in expected.items() if figures.measurable}
    assert {loss.task for loss in report.losses} == measurable != set()
    assert set(report.too_few) == set(expected) - measurable


def test_a_model_against_itself_loses_nothing(fp32: Engine, prepared: Prepared) -> None:
    report = check_quality(fp32, fp32, prepared, replace(LIMITS, max_loss_points=0.0, min_top_overlap=1.0))
    assert {(loss.points, loss.error_points) for loss in report.losses} == {(0.0, 0.0)}
    top = report.top
    assert (top.overlap, top.same_set, top.same_order, top.score_kept) == (1, 1, 1, 1)


def test_a_good_int8_passes_and_its_report_is_in_the_artifact(int8: Artifact) -> None:
    report = json.loads((int8.path / QUALITY).read_text())
    assert report["precision"] == int8.manifest.precision == "int8"
    assert QUALITY in int8.manifest.files
    assert report["limits"]["max_loss_points"] == 0.05
    assert report["top"]["overlap"] > 0.9
    assert {loss["metric"] for loss in report["losses"]} == {"AUC", "UAUC", "GAUC"}


def test_a_damaged_model_is_refused_with_task_metric_and_figures(
    fp32: Engine, int8: Artifact, prepared: Prepared, tmp_path: Path
) -> None:
    damaged = changed(int8, tmp_path / "damaged", noise)
    figures = r"falls from 0\.\d{5} to 0\.\d{5}, by \d+\.\d{3} points \(standard error \d+\.\d{3}\)"
    with pytest.raises(GateError, match=rf"^int8: U?G?AUC of [a-z]+ {figures}; allowed are 0\.05: keep fp32 or raise"):
        check_quality(fp32, damaged, prepared, LIMITS)
    let_pass = replace(LIMITS, max_loss_points=100.0, min_top_overlap=0.0)
    assert check_quality(fp32, damaged, prepared, let_pass).top.overlap < 1


def test_an_order_that_auc_does_not_see_is_refused(
    fp32: Engine, int8: Artifact, prepared: Prepared, tmp_path: Path
) -> None:
    changed_order = changed(int8, tmp_path / "order", first_task_counts_for_nothing)
    with pytest.raises(
        GateError, match=r"^int8: of the 10 best of 40 candidates only \d+\.\d% stay, at least 90% must"
    ):
        check_quality(fp32, changed_order, prepared, LIMITS)


def test_a_sample_that_cannot_tell_is_refused(fp32: Engine, prepared: Prepared) -> None:
    with pytest.raises(GateError, match=r"no task has 50 positives and as many negatives among the \d+ samples"):
        check_quality(fp32, fp32, prepared, replace(LIMITS, samples=1))


def test_nothing_is_left_of_a_refused_export_and_what_was_there_stays(
    artifact: Path, int8: Artifact, prepared: Prepared, tmp_path: Path
) -> None:
    source, strict = Artifact.open(artifact), replace(LIMITS, min_top_overlap=1.01)
    with pytest.raises(GateError):
        convert_checked(source, tmp_path / "new", "int8", prepared, strict)
    made = convert_checked(source, tmp_path / "old", "fp16", prepared, LIMITS)[0]
    with pytest.raises(GateError):
        convert_checked(source, tmp_path / "old", "int8", prepared, strict)
    assert os.listdir(tmp_path) == ["old"]
    assert Artifact.open(tmp_path / "old").version == made.version


def test_data_of_another_view_is_refused_before_the_export(
    run_folder: Path, prepared: Prepared, tmp_path: Path
) -> None:
    other = replace(prepared, view=prepared.view.model_copy(update={"history_length": 7}))
    with pytest.raises(RunError, match="its model view is not the run's"):
        export_checked(run_folder, tmp_path / "out", "int8", other, LIMITS)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("points", "error", "refused"),
    [(0.04, 0.0, False), (0.06, 0.0, True), (0.06, 0.03, False), (0.06, 0.01, True), (-1.0, 0.0, False)],
)
def test_a_loss_is_refused_beyond_the_limit_and_beyond_chance(points: float, error: float, refused: bool) -> None:
    loss = Loss("ctr", "AUC", 0.8, 0.8 - points / 100, error)
    assert loss.points == pytest.approx(points)
    assert loss.beyond(0.05) == refused


def test_top_orders_are_compared_exactly() -> None:
    """Twelve candidates of three slates: the same order, two of the ten changed places, one of the ten is another."""
    fp32 = np.tile(np.arange(12, 0, -1.0), (3, 1))
    converted = fp32.copy()
    converted[1, [0, 1]] = [11, 12]
    converted[2, 10] = 100  # score 2 instead of the tenth, 3
    found = gate.compare_tops(fp32, converted)
    best = sum(range(3, 13))
    np.testing.assert_allclose(found, [[1, 1, 1, 1], [1, 1, 0, 1], [0.9, 0, 0, (best - 1) / best]])


def test_a_figure_that_does_not_exist_is_no_loss_and_one_that_is_lost_is() -> None:
    """Where every user has one sample there is no UAUC, of no model; scores that are no numbers are refused."""
    rng, rows = np.random.default_rng(0), np.arange(2_000)
    labels, scores = (rng.random((2_000, 1)) < 0.3).astype(np.int8), rng.random((2_000, 1)).astype(np.float32)
    alone = SimpleNamespace(samples={"labels": labels, "user_row": rows}, view=SimpleNamespace(tasks=("ctr",)))
    losses, _ = gate._losses(alone, rows, scores, scores)  # type: ignore[arg-type]
    assert [(loss.metric, loss.points, loss.beyond(0.05)) for loss in losses] == [("AUC", 0.0, False)]
    together = SimpleNamespace(samples={"labels": labels, "user_row": rows // 20}, view=alone.view)
    losses, _ = gate._losses(together, rows, scores, scores)  # type: ignore[arg-type]
    assert [loss.metric for loss in losses] == ["AUC", "UAUC", "GAUC"]
    lost = Loss("ctr", "UAUC", 0.8, float("nan"), 0.0)
    assert lost.beyond(0.05)


def test_samples_are_scored_in_tiles_of_their_request() -> None:
    tile, place, tile_user = slates.tiles(np.array([0, 0, 0, 1, 2, 2]), 2)
    assert tile.tolist() == [0, 0, 1, 2, 3, 3]
    assert place.tolist() == [0, 1, 0, 0, 0, 1]
    assert tile_user.tolist() == [0, 0, 1, 2]


def test_a_sample_holds_users_whole(prepared: Prepared) -> None:
    rows, users = prepared.rows("valid"), prepared.samples["user_row"]
    drawn = slates.sample_users(prepared, "valid", len(rows) // 4, seed=3)
    assert len(rows) // 4 <= len(drawn) < len(rows) // 2
    assert (np.diff(drawn) > 0).all()
    np.testing.assert_array_equal(drawn, rows[np.isin(users[rows], users[drawn])])
    assert drawn.tolist() != slates.sample_users(prepared, "valid", len(rows) // 4, seed=4).tolist()


def test_slates_hold_different_authors_of_the_day(prepared: Prepared) -> None:
    def draw(size: int) -> Iterator[slates.Reads]:
        return slates.draw_slates(prepared, "valid", slates=10, size=size, seed=1)

    column = prepared.view.columns("candidate").index("author_id")
    authors = {*prepared.samples["author_id"][prepared.rows("valid")].tolist()}
    for reads in draw(30):
        for drawn in reads.candidates[..., column]:
            assert len(set(drawn.tolist())) == 30
            assert set(drawn.tolist()) <= authors
    assert next(draw(10**6)).candidates.shape[1] == len(authors)
    assert sum(len(reads.users.now) for reads in draw(30)) <= 10
