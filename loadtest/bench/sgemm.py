"""The rate of the core that the towers run on: a float32 product of 1024 x 1024 x 1024.

By each library at hand, and the fastest counts: a rate of the core, not of one library.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort

SIZE = 1024
FLOPS = 2 * SIZE**3


def products(threads: int) -> dict[str, Callable[[], object]]:
    """One product of each library, on `threads` threads."""
    left, right = np.random.default_rng(0).standard_normal((2, SIZE, SIZE), np.float32)
    session = _session(right, threads)
    found: dict[str, Callable[[], object]] = {"onnxruntime": lambda: session.run(None, {"left": left})}
    if threads == 1:  # their threads are set for the process, not for a product
        found["numpy"] = lambda: left @ right
        found |= _torch(left, right)
    return found


def _torch(left: np.ndarray, right: np.ndarray) -> dict[str, Callable[[], object]]:
    import torch

    torch.set_num_threads(1)
    a, b = torch.from_numpy(left), torch.from_numpy(right)
    return {"torch": lambda: a @ b}


def _session(right: np.ndarray, threads: int) -> ort.InferenceSession:
    info, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    node = onnx.helper.make_node("MatMul", ["left", "right"], ["product"])
    shape = [SIZE, SIZE]
    graph = onnx.helper.make_graph(
        [node],
        "sgemm",
        [info("left", kind, shape)],
        [info("product", kind, shape)],
        [onnx.numpy_helper.from_array(right, "right")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
