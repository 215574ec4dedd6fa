"""Counting a graph's products, and the verb's figures on a small run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from loadtest.bench import sgemm
from loadtest.bench.engine import Bench
from loadtest.bench.flops import flops


def test_products_are_counted_by_the_shapes_of_the_run(tmp_path: Path) -> None:
    """[3, 5, 4] x [4, 7], then a Gemm of its transpose, then a batched product: 2 x outputs x length of the sums."""
    weight = numpy_helper.from_array(np.ones((4, 7), np.float32), "weight")
    second = numpy_helper.from_array(np.ones((6, 2), np.float32), "second")
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "weight"], ["a"]),  # [3, 5, 7]
            helper.make_node("Gemm", ["y", "second"], ["b"], transA=1),  # [6, 9] -> [9, 2]
            helper.make_node("Relu", ["a"], ["c"]),
            helper.make_node("Transpose", ["c"], ["d"], perm=[0, 2, 1]),
            helper.make_node("MatMul", ["a", "d"], ["e"]),  # [3, 5, 5]
        ],
        "products",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 5, 4]),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [6, "m"]),
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("b", "e")],
        [weight, second],
    )
    path = tmp_path / "products.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    feeds = {"x": np.ones((3, 5, 4), np.float32), "y": np.ones((6, 9), np.float32)}
    assert flops(path, feeds) == 2 * (3 * 5 * 7 * 4 + 9 * 2 * 6 + 3 * 5 * 5 * 7)


def test_every_library_multiplies_the_same_matrices() -> None:
    found = {name: np.asarray(call()) for name, call in sgemm.products(threads=1).items()}
    assert set(found) == {"onnxruntime", "numpy", "torch"}
    for product in found.values():
        np.testing.assert_allclose(np.squeeze(product), found["numpy"], atol=1e-3, rtol=0)


def test_sides_take_turns() -> None:
    """A clock that counts calls: each is timed three times a round, after one that is not."""
    ticks = iter(range(1000))
    order: list[str] = []
    bench = Bench(rounds=2, clock=lambda: float(next(ticks)))
    medians = bench.medians_ms({"a": lambda: order.append("a"), "b": lambda: order.append("b")})
    assert medians == {"a": 1000.0, "b": 1000.0}
    assert order == [*"aaaabbbb"] * 2
