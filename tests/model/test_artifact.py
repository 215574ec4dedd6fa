"""The artifact on disk: checksums, version, tables held once; calibration and formula."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import Exported
from pydantic import ValidationError

import model
from model.artifact.calibration import Calibration, CalibrationError
from model.artifact.engine import Engine, EngineError
from model.artifact.formula import Formula, Term
from model.artifact.golden import load_golden, save_golden
from model.artifact.manifest import (
    CANDIDATE_TOWER,
    GOLDEN,
    MANIFEST,
    TABLES,
    USER_TOWER,
    Artifact,
    ArtifactError,
    describe_file,
)
from model.embedding import table_key

FILES = (
    "calibration.json",
    "candidate_tower.data",
    "candidate_tower.onnx",
    "golden.npz",
    "tables.data",
    "user_tower.data",
    "user_tower.onnx",
)


@pytest.fixture
def copy(farm: Exported, tmp_path: Path) -> Path:
    """A copy of FARM's artifact to spoil."""
    return Path(shutil.copytree(farm.path, tmp_path / "artifact"))


def test_manifest_describes_every_file(farm: Exported) -> None:
    manifest = farm.engine.manifest
    assert tuple(sorted(manifest.files)) == FILES
    assert {file.name for file in farm.path.iterdir()} == {*FILES, MANIFEST}
    assert manifest.view == farm.model.view
    assert manifest.parameters["dense"] + manifest.parameters["tables"] == sum(
        p.numel() for p in farm.model.parameters()
    )


def test_version_is_a_time_and_the_hash_of_the_manifest(farm: Exported, copy: Path) -> None:
    assert re.fullmatch(r"\d{8}T\d{6}Z-[0-9a-f]{8}", farm.engine.version)
    assert farm.engine.version.startswith(f"{farm.engine.manifest.created:%Y%m%dT%H%M%SZ}")
    assert Artifact.open(copy).version == farm.engine.version
    with (copy / MANIFEST).open("a") as file:
        file.write("\n")
    assert Artifact.open(copy).version != farm.engine.version


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("spoil", ["truncate", "change", "remove", "lengthen"])
def test_a_spoilt_file_is_refused_by_name(copy: Path, name: str, spoil: str) -> None:
    file = copy / name
    content = file.read_bytes()
    if spoil == "remove":
        file.unlink()
    else:
        middle = len(content) // 2
        changed = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        file.write_bytes({"truncate": content[:-1], "change": changed, "lengthen": content + b"\0"}[spoil])
    with pytest.raises(ArtifactError, match=re.escape(str(file))):
        Engine.load(copy)


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", '{"format": 1, "surprise": 2}'])
def test_a_manifest_that_is_none_is_refused(copy: Path, content: str) -> None:
    (copy / MANIFEST).write_text(content)
    with pytest.raises(ArtifactError, match=re.escape(str(copy / MANIFEST))):
        Artifact.open(copy)


def test_a_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no manifest\.json"):
        Artifact.open(tmp_path)
    with pytest.raises(ArtifactError, match=r"no manifest\.json"):
        Artifact.open(tmp_path / "absent")


# Graphs


def external(path: Path) -> dict[str, dict[str, str]]:
    """External data of a graph's tensors by name: location, offset, length."""
    graph = onnx.load(str(path), load_external_data=False).graph
    return {t.name: {e.key: e.value for e in t.external_data} for t in graph.initializer if t.external_data}


def test_tables_are_stored_once_and_both_graphs_read_them(farm: Exported) -> None:
    spans: dict[str, set[tuple[int, int]]] = {}
    for tower, own in ((USER_TOWER, "user_tower.data"), (CANDIDATE_TOWER, "candidate_tower.data")):
        tensors = external(farm.path / tower)
        assert {entry["location"] for entry in tensors.values()} == {own, TABLES}
        assert all((entry["location"] == TABLES) == ("tables" in name) for name, entry in tensors.items())
        spans[tower] = {(int(e["offset"]), int(e["length"])) for e in tensors.values() if e["location"] == TABLES}
    view = farm.model.view
    read = {
        tower: {table_key(view.table_name(p, f)) for p, f in view.all_fields() if (p == "candidate") == candidate}
        for tower, candidate in ((USER_TOWER, False), (CANDIDATE_TOWER, True))
    }
    assert {tower: len(found) for tower, found in spans.items()} == {t: len(names) for t, names in read.items()}
    assert len(spans[USER_TOWER] & spans[CANDIDATE_TOWER]) == len(read[USER_TOWER] & read[CANDIDATE_TOWER]) >= 2
    every = sorted(spans[USER_TOWER] | spans[CANDIDATE_TOWER])
    assert len(every) == len(farm.model.tables)
    assert all(begin + length <= start for (begin, length), (start, _) in pairwise(every))
    assert sum(length for _, length in every) == 4 * farm.engine.manifest.parameters["tables"]
    assert (farm.path / TABLES).stat().st_size == sum(every[-1])


@pytest.mark.parametrize("tower", [USER_TOWER, CANDIDATE_TOWER])
def test_no_half_precision_and_no_path_of_the_machine(farm: Exported, tower: str) -> None:
    graph = onnx.load(str(farm.path / tower), load_external_data=False).graph
    halves = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    values = [*graph.value_info, *graph.input, *graph.output]
    assert not halves & {value.type.tensor_type.elem_type for value in values}
    assert not halves & {tensor.data_type for tensor in graph.initializer}
    assert not any(a.i in halves for node in graph.node if node.op_type == "Cast" for a in node.attribute)
    content = (farm.path / tower).read_bytes()
    package = Path(model.__file__).parent
    for path in (package, package.parent, Path(sys.prefix), Path.home(), Path.cwd(), farm.path):
        assert len(path.parts) < 2 or str(path).encode() not in content
    assert b"site-packages" not in content
    assert b".py" not in content


@pytest.mark.parametrize("tower", [USER_TOWER, CANDIDATE_TOWER])
def test_ids_and_times_stay_int64(farm: Exported, tower: str) -> None:
    """ONNX Runtime's Clip cuts int64 at 32 bits; the exporter's floor division of int64 goes through float32."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(str(farm.path / tower), load_external_data=False)).graph
    types = {v.name: v.type.tensor_type.elem_type for v in [*graph.value_info, *graph.input]}
    for node in graph.node:
        if node.op_type in ("Clip", "Div"):
            assert types[node.input[0]] == onnx.TensorProto.FLOAT, node.name
        if node.op_type == "Cast":
            assert types[node.input[0]] == onnx.TensorProto.BOOL, node.name


@pytest.mark.parametrize("tower", [USER_TOWER, CANDIDATE_TOWER])
def test_no_axis_is_frozen(farm: Exported, tower: str) -> None:
    graph = onnx.load(str(farm.path / tower), load_external_data=False).graph
    for value in [*graph.input, *graph.output]:
        dims = value.type.tensor_type.shape.dim
        assert dims[0].dim_param, value.name
        if value.name in ("candidates", "probabilities"):
            assert dims[1].dim_param, value.name


# Golden outputs and provider


def rewrite_golden(folder: Path, by: float) -> None:
    """Golden outputs moved, with a manifest that knows of it."""
    cases = load_golden(folder / GOLDEN)
    cases[1].probabilities[0, 0, 0] += by
    save_golden(folder / GOLDEN, cases)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][GOLDEN] = describe_file(folder / GOLDEN).model_dump()
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize("by", [2e-5, -0.5, np.nan])
def test_outputs_that_are_not_the_golden_ones_are_refused(copy: Path, by: float) -> None:
    rewrite_golden(copy, by)
    with pytest.raises(EngineError, match="golden case 1"):
        Engine.load(copy)
    Engine.load(copy, check=False)


def test_golden_outputs_are_met(farm: Exported) -> None:
    assert farm.engine.check_golden() <= 1e-5


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_do_not_change_the_outputs_beyond_the_tolerance(farm: Exported, threads: int) -> None:
    assert Engine.load(farm.path, threads=threads).check_golden() <= 1e-5


# Calibration

TASKS = ("ctr", "ltr")


def curve(x: list[float], y: list[float]) -> Calibration:
    return Calibration(TASKS, {"ltr": (np.array(x), np.array(y))})


def logit(p: float) -> float:
    return math.log(p) - math.log1p(-p)


def test_calibration_is_identity_without_curves(tmp_path: Path) -> None:
    p = np.random.default_rng(0).random((3, 2), np.float32)
    assert np.array_equal(Calibration(TASKS, {}).apply(p), p)
    (tmp_path / "calibration.json").write_text('{"tasks": {}}\n')
    assert np.array_equal(Calibration.load(tmp_path / "calibration.json", TASKS).apply(p), p)


def test_calibration_interpolates_logits_of_its_task_only(tmp_path: Path) -> None:
    calibration = curve([0.1, 0.5, 0.9], [0.02, 0.1, 0.7])
    p = np.random.default_rng(0).random((2, 50, 2), np.float32)
    out = calibration.apply(p)
    assert out.dtype == np.float32
    assert np.array_equal(out[..., 0], p[..., 0])

    def by_hand(score: float) -> float:
        z, x, y = logit(score), [logit(v) for v in (0.1, 0.5, 0.9)], [logit(v) for v in (0.02, 0.1, 0.7)]
        left = 0 if score < 0.5 else 1  # the outermost lines go on
        value = y[left] + (y[left + 1] - y[left]) / (x[left + 1] - x[left]) * (z - x[left])
        return 1 / (1 + math.exp(-value))

    expected = [by_hand(float(v)) for v in p[..., 1].ravel()]
    np.testing.assert_allclose(out[..., 1].ravel(), expected, rtol=1e-6)
    calibration.save(tmp_path / "calibration.json")
    again = Calibration.load(tmp_path / "calibration.json", TASKS)
    assert np.array_equal(again.apply(p), out)
    assert again.hash == calibration.hash != Calibration(TASKS, {}).hash


@pytest.mark.parametrize("last", [0.95, 1 - 1e-12])
def test_calibration_keeps_order_to_the_ends_of_float32(last: float) -> None:
    """From 0 over the smallest numbers to 1: probabilities in [0, 1], never falling, the tiny ones apart."""
    least = np.finfo(np.float32).smallest_subnormal
    tiny = np.geomspace(1e-30, 1e-6, 5_000, dtype=np.float32)
    p = np.unique(np.concatenate([[0, least, 1, np.nextafter(np.float32(1), 0)], tiny, np.linspace(0, 1, 20_001)]))
    p = p.astype(np.float32)
    out = curve([0.2, 0.3, last], [0.1, 0.11, 0.9]).apply(np.stack([p, p], axis=1))[:, 1]
    assert (np.diff(out) >= 0).all()
    assert (out >= 0).all()
    assert (out <= 1).all()
    calibrated_tiny = out[np.isin(p, tiny)]
    assert (np.diff(calibrated_tiny) > 0).all()


@pytest.mark.parametrize("shape", [(0, 2), (1, 2), (200, 2), (3, 0, 2), (2,)])
def test_calibration_takes_any_number_of_candidates(shape: tuple[int, ...]) -> None:
    assert curve([0.1, 0.9], [0.2, 0.8]).apply(np.full(shape, 0.5, np.float32)).shape == shape


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ([0.1, 0.9], [0.5, 0.4]),  # falls
        ([0.1, 0.5, 0.9], [0.4, 0.4, 0.5]),  # flat
        ([0.5, 0.5], [0.1, 0.9]),
        ([0.9, 0.1], [0.1, 0.9]),
        ([0.5], [0.5]),
        ([], []),
        ([0.1, 0.9], [0.5]),
        ([0.0, 0.9], [0.1, 0.9]),
        ([0.1, 0.9], [0.1, 1.0]),
        ([-0.1, 0.9], [0.1, 0.9]),
        ([0.1, 0.9], [0.1, 1.1]),
        ([0.1, float("nan")], [0.1, 0.9]),
        ([0.1, 0.9], [float("nan"), 0.9]),
        ([0.1, float("inf")], [0.1, 0.9]),
    ],
)
def test_calibration_must_strictly_increase_inside_the_unit_square(x: list[float], y: list[float]) -> None:
    with pytest.raises(CalibrationError, match=r"calibration\.ltr"):
        curve(x, y)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"tasks": []}', '{"tasks": {"ltr": 1}}', '{"tasks": {"ltr": {"x": ["a", 1], "y": []}}}'],
)
def test_a_calibration_file_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(content)
    with pytest.raises(CalibrationError, match=re.escape(str(path))):
        Calibration.load(path, TASKS)


def test_calibration_of_another_models_task_is_refused() -> None:
    with pytest.raises(CalibrationError, match="'gtr' is no task"):
        Calibration(TASKS, {"gtr": (np.array([0.1, 0.9]), np.array([0.1, 0.9]))})


# Formula


def test_default_score_is_the_sum_of_log1p_in_float32() -> None:
    p = np.random.default_rng(0).random((200, 2), np.float32)
    score = Formula().score(p, TASKS)
    assert score.dtype == np.float32
    np.testing.assert_allclose(score, np.log1p(p.astype(np.float64)).sum(1), rtol=1e-6)


def test_weights_and_powers_are_by_task() -> None:
    formula = Formula(tasks={"ltr": Term(weight=30.0, power=-2.0)})
    p = np.random.default_rng(0).random((50, 2), np.float32)
    wide = p.astype(np.float64)
    np.testing.assert_allclose(
        formula.score(p, TASKS), np.log1p(wide[:, 0]) - 2 * np.log1p(30 * wide[:, 1]), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("term", [{"weight": -1}, {"weight": 1e7}, {"power": 101}, {"weight": float("nan")}, {"x": 1}])
def test_formula_is_bounded(term: dict) -> None:
    with pytest.raises(ValidationError):
        Formula.model_validate({"tasks": {"ctr": term}})


def test_formula_is_bound_to_tasks_and_calibration(tmp_path: Path) -> None:
    Formula(calibration="abc").check(TASKS, "abc")
    Formula().check(TASKS, "anything")
    with pytest.raises(ValueError, match="made for abc"):
        Formula(calibration="abc").check(TASKS, "def")
    with pytest.raises(ValueError, match=r"formula\.tasks\.gtr"):
        Formula(tasks={"gtr": Term()}).check(TASKS, "")
    (tmp_path / "f.json").write_text('{"version": "7", "tasks": {"ctr": {"power": 2}}}')
    assert Formula.load(tmp_path / "f.json").tasks["ctr"] == Term(power=2.0)
