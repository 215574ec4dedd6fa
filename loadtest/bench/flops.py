"""Floating-point operations of a graph's matrix products, from the shapes of a real run.

Products only (a multiplication and an addition each): what a softmax, an activation or a lookup costs is not counted,
so a rate that is derived from it is what is left for products after all the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
_PRODUCTS = ("MatMul", "Gemm", "FusedMatMul", "FusedGemm")


def flops(graph: Path, feeds: Mapping[str, np.ndarray]) -> int:
    """Operations of one run of a graph with these inputs, counted in the graph as it is written.

    Whatever ONNX Runtime fuses or folds at its start, the products stay.
    """
    model = onnx.load(graph, load_external_data=False)
    products = [node for node in model.graph.node if node.op_type in _PRODUCTS]
    names = sorted({name for node in products for name in (*node.input[:2], node.output[0])})
    shapes = _shapes(graph, model, names, feeds)
    return sum(_of_product(node, shapes) for node in products)


def _of_product(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """2 x elements of the output x length of the sums."""
    left, out = shapes[node.input[0]], shapes[node.output[0]]
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return 2 * math.prod(out) * left[-2 if transposed and len(left) > 1 else -1]


def _shapes(
    path: Path, model: onnx.ModelProto, names: list[str], feeds: Mapping[str, np.ndarray]
) -> dict[str, tuple[int, ...]]:
    """Shapes of tensors of a graph in a run: each gets a Shape node, whose output is asked for."""
    known = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    wanted = [name for name in names if name not in known]
    for name in wanted:
        model.graph.node.append(onnx.helper.make_node("Shape", [name], [f"shape of {name}"]))
        model.graph.output.append(
            onnx.helper.make_tensor_value_info(f"shape of {name}", onnx.TensorProto.INT64, [None])
        )
    options = ort.SessionOptions()
    options.add_session_config_entry(_WEIGHTS_FOLDER, str(path.parent))
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    reads = {node.name for node in session.get_inputs()}
    found = session.run(
        [f"shape of {name}" for name in wanted], {name: array for name, array in feeds.items() if name in reads}
    )
    return known | {name: tuple(shape.tolist()) for name, shape in zip(wanted, found, strict=True)}
