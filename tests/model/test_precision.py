"""Artifacts in fp16 and int8 against the fp32 one that they were made from."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from conftest import Exported

from feature_store.matrices import UserInputs
from feature_store.schema import MISSING
from model.artifact.engine import Engine
from model.artifact.golden import load_golden
from model.artifact.manifest import CANDIDATE_TOWER, GOLDEN, MANIFEST, TABLES, USER_TOWER, Artifact
from model.datasets.prepared import Prepared
from model.export.int8 import find_products, quantise
from model.export.precision import ConvertError, Precision, convert, write_manifest
from model.export.slates import draw_slates
from model.export.weights import load_graph
from model.golden import EDGE_IDS, NOW_2035_MS, random_candidates, random_users

TOLERANCES = {"fp16": 0.01, "int8": 0.1}
FLOATS_OF_2_BYTES = onnx.TensorProto.FLOAT16


@pytest.fixture(scope="module")
def fp32(artifact: Path) -> Engine:
    return Engine.load(artifact)


@pytest.fixture(scope="module")
def converted(artifact: Path, prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Engine]:
    """By precision.  Loading compares them with PyTorch's golden probabilities."""
    folder = tmp_path_factory.mktemp("converted")
    reads = list(draw_slates(prepared, "train", slates=16, size=50, seed=1))
    names: tuple[Precision, ...] = ("fp16", "int8")
    return {name: Engine.load(convert(artifact, folder / name, name, reads).path) for name in names}


def scores(engine: Engine, users: UserInputs, candidates: np.ndarray) -> np.ndarray:
    """Of candidates [U, K, Fc], a tile per user."""
    return engine.score(engine.user_state(users), candidates, np.arange(len(users.now), dtype=np.int64))


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("size", [1, 2, 199, 2000])
def test_probabilities_stay_where_they_were(
    fp32: Engine, converted: dict[str, Engine], precision: str, size: int
) -> None:
    """Empty and full histories; ids of all sizes, missing values, and times of 2035, far above 2^31 and 65,504."""
    users = random_users(fp32.view, [(0, 0), (50, 1), (1, 50), (50, 50)], seed=size)
    assert users.now.max() == NOW_2035_MS > 2**31
    candidates = random_candidates(fp32.view, (4, size), seed=size)
    candidates[0, : len(EDGE_IDS), 0] = EDGE_IDS[:size]
    expected, found = (scores(engine, users, candidates) for engine in (fp32, converted[precision]))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=TOLERANCES[precision], rtol=0)
    assert np.abs(found - expected).max() > 0


@pytest.mark.parametrize("precision", TOLERANCES)
def test_a_score_does_not_hang_on_its_neighbours(converted: dict[str, Engine], precision: str) -> None:
    engine = converted[precision]
    users = random_users(engine.view, [(50, 50), (3, 0)], seed=2)
    candidates = random_candidates(engine.view, (2, 100), seed=2)
    candidates[1] = MISSING
    together = scores(engine, users, candidates)
    state = engine.user_state(users)
    alone = np.concatenate([engine.score(state, candidates[:1, i : i + 1], np.zeros(1, np.int64)) for i in range(100)])
    # fp16: float32 sums whose last bits depend on the number of rows may round to the neighbouring number
    np.testing.assert_allclose(alone[:, 0], together[0], atol=5e-4 if precision == "fp16" else 1e-6, rtol=0)


def test_every_row_that_fp16_looks_up_is_that_of_fp32(fp32: Engine, converted: dict[str, Engine]) -> None:
    """Buckets of times and numbers, and folded ids: exact on both sides of every boundary."""
    users = random_users(fp32.view, [(50, 50)] * 4, seed=3)
    for matrix, part in ((users.video, "video"), (users.live, "live")):
        for field in fp32.view.fields(part):
            column = fp32.view.columns(part).index(field.source) if field.source else None
            edges = np.concatenate([np.array(field.boundaries) + step for step in (-1, 0, 1)])[:50]
            if column is not None and field.boundaries:
                values = users.now[:, None] - edges if field.kind == "time" else edges
                matrix[:, : len(edges), column] = values
    feeds = {**users.feeds(), "tile_user": np.arange(4), "candidates": random_candidates(fp32.view, (4, 30), seed=3)}
    feeds |= fp32.user_state(users)
    for tower in (USER_TOWER, CANDIDATE_TOWER):
        expected, found = (rows_looked_up(e.artifact.path / tower, feeds) for e in (fp32, converted["fp16"]))
        assert len(expected) > 3
        for a, b in zip(expected, found, strict=True):
            np.testing.assert_array_equal(a, b)


def rows_looked_up(graph: Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """What indexes the embedding tables, in the order of the graph."""
    model = load_graph(graph)
    tables = {t.name for t in model.graph.initializer if onnx.external_data_helper.uses_external_data(t)}
    rows = [node.input[1] for node in model.graph.node if node.op_type == "Gather" and node.input[0] in tables]
    model.graph.ClearField("value_info")
    model.graph.output.extend(onnx.helper.make_tensor_value_info(n, onnx.TensorProto.INT64, None) for n in set(rows))
    options = ort.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(graph.parent))
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    halves = {node.name for node in session.get_inputs() if node.type == "tensor(float16)"}
    given = {n.name: feeds[n.name].astype("f2") if n.name in halves else feeds[n.name] for n in session.get_inputs()}
    return session.run(rows, given)  # type: ignore[no-any-return]


def test_products_of_every_form_against_float64(tmp_path: Path) -> None:
    """Concatenated inputs of unlike ranges with a bias; a Gemm of transposed weights; one product per expert."""
    rng = np.random.default_rng(0)
    shapes = {"w": (96, 64), "b": (64,), "g": (64, 64), "c": (64,), "e": (3, 64, 64), "small": (64, 8)}
    constants = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    make, float32 = onnx.helper.make_node, onnx.TensorProto.FLOAT
    nodes = [
        make("Concat", ["x", "y"], ["xy"], axis=1),
        make("MatMul", ["xy", "w"], ["product"]),
        make("Add", ["b", "product"], ["sum"]),
        make("Relu", ["sum"], ["hidden"]),
        make("Gemm", ["hidden", "g", "c"], ["gemm"], transB=1),
        make("MatMul", ["sum", "e"], ["experts"]),
        make("Gemm", ["sum", "g"], ["doubled"], alpha=2.0),
        make("MatMul", ["sum", "small"], ["gates"]),
        make("Concat", ["sum", "hidden"], ["rows"], axis=0),
        make("MatMul", ["rows", "g"], ["of_rows"]),
    ]
    outputs = ["sum", "gemm", "experts", "doubled", "gates", "of_rows"]
    port = onnx.helper.make_tensor_value_info
    inputs = [port("x", float32, ["n", 32]), port("y", float32, ["n", 64])]
    found_in = [port(name, float32, None) for name in outputs]
    graph = onnx.helper.make_graph(nodes, "products", inputs, found_in)
    graph.initializer.extend(onnx.numpy_helper.from_array(values, name) for name, values in constants.items())
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    feeds = {
        "x": rng.normal(size=(50, 32)).astype(np.float32),
        "y": 0.1 * rng.normal(size=(50, 64)).astype(np.float32),
    }

    made = quantise(model, [feeds], tmp_path)
    kinds = [node.op_type for node in made.graph.node]
    assert (kinds.count("MatMulIntegerToFloat"), kinds.count("Gemm"), kinds.count("MatMul")) == (4, 1, 1)
    assert kinds.count("QuantizeLinear") == 5  # x, y, hidden, sum, rows
    session = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    found = dict(zip(outputs, session.run(outputs, feeds), strict=True))
    c = {name: values.astype(np.float64) for name, values in constants.items()}
    total = np.concatenate([feeds["x"], feeds["y"]], axis=1).astype(np.float64) @ c["w"] + c["b"]
    expected = {
        "sum": total,
        "gemm": np.maximum(total, 0) @ c["g"].T + c["c"],
        "experts": total @ c["e"],
        "doubled": 2 * total @ c["g"],
        "gates": total @ c["small"],
        "of_rows": np.concatenate([total, np.maximum(total, 0)]) @ c["g"],
    }
    for name, values in expected.items():
        assert np.abs(found[name] - values).max() < 0.04 * np.abs(values).max(), name


def test_what_int8_computes_and_what_it_leaves(fp32: Engine, converted: dict[str, Engine]) -> None:
    before, after = (load_graph(e.artifact.path / CANDIDATE_TOWER) for e in (fp32, converted["int8"]))
    products = find_products(before)
    kinds = [node.op_type for node in after.graph.node]
    assert kinds.count("MatMulIntegerToFloat") == len(products) > 1
    assert find_products(after) == []
    assert "DynamicQuantizeLinear" not in kinds  # its range would be that of the batch
    users = random_users(fp32.view, [(5, 5)], seed=4)
    states = [engine.user_state(users) for engine in (fp32, converted["int8"])]
    for name, values in states[0].items():
        np.testing.assert_array_equal(states[1][name], values)


def test_what_fp16_halves(fp32: Engine, converted: dict[str, Engine]) -> None:
    whole, half = fp32.artifact, converted["fp16"].artifact
    assert half.manifest.files[TABLES].bytes < 0.6 * whole.manifest.files[TABLES].bytes
    assert converted["fp16"].state_bytes < 0.6 * fp32.state_bytes
    graph = load_graph(half.path / USER_TOWER).graph
    assert {tensor.data_type for tensor in graph.initializer} <= {
        FLOATS_OF_2_BYTES,
        onnx.TensorProto.INT64,
        onnx.TensorProto.BOOL,
    }
    assert {node.type.tensor_type.elem_type for node in graph.input} == {onnx.TensorProto.INT64}


@pytest.mark.parametrize("precision", TOLERANCES)
def test_manifest_and_golden_outputs(fp32: Engine, converted: dict[str, Engine], precision: str) -> None:
    made, source = converted[precision].artifact, fp32.artifact
    assert made.manifest.precision == precision
    assert 1e-3 <= made.manifest.golden_tolerance <= TOLERANCES[precision]
    assert made.version != source.version
    assert (made.path / GOLDEN).read_bytes() == (source.path / GOLDEN).read_bytes()
    assert made.manifest.view == source.manifest.view


def test_without_inputs_int8_takes_its_ranges_from_the_golden_ones(artifact: Path, tmp_path: Path) -> None:
    Engine.load(convert(artifact, tmp_path / "out", "int8").path)


def test_a_model_with_weights_that_matter(farm: Exported, tmp_path: Path) -> None:
    """Weights of N(0, 1 / inputs): no gate at one half, no bias at zero, logits of several units."""
    names: tuple[Precision, ...] = ("fp16", "int8")
    for precision in names:
        engine = Engine.load(convert(farm.path, tmp_path / precision, precision).path)
        for case in load_golden(farm.path / GOLDEN):
            found = engine.score(engine.user_state(case.users), case.candidates, case.tile_user)
            np.testing.assert_allclose(found, case.probabilities, atol=TOLERANCES[precision], rtol=0)


@pytest.mark.parametrize("precision", ["int8", "fp32", "bf16"])
def test_only_fp32_is_converted_and_only_to_what_is_known(
    converted: dict[str, Engine], artifact: Path, tmp_path: Path, precision: Precision
) -> None:
    source = converted["fp16"].artifact.path if precision == "int8" else artifact
    with pytest.raises(ConvertError, match=f"to {precision}: only fp32 can be converted, to fp16 or int8"):
        convert(source, tmp_path / "out", precision)
    assert os.listdir(tmp_path) == []


def test_a_model_that_is_no_longer_the_same_is_refused_and_nothing_is_left(artifact: Path, tmp_path: Path) -> None:
    """Golden outputs of another model stand for a conversion gone wrong."""
    spoilt = tmp_path / "spoilt"
    shutil.copytree(artifact, spoilt)
    with np.load(spoilt / GOLDEN) as file:
        arrays = {key: file[key] + 0.5 if key.endswith("probabilities") else file[key] for key in file.files}
    np.savez_compressed(spoilt / GOLDEN, **arrays)
    write_manifest(Artifact.open(artifact).manifest, spoilt)
    before = convert(artifact, tmp_path / "out", "int8").version
    with pytest.raises(ConvertError, match=r"golden case 0: probabilities differ by .*; keep fp32"):
        convert(spoilt, tmp_path / "out", "int8")
    assert Artifact.open(tmp_path / "out").version == before
    assert sorted(os.listdir(tmp_path)) == ["out", "spoilt"]
    assert MANIFEST in os.listdir(tmp_path / "out")
