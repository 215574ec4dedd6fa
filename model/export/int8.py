"""The candidate tower in int8: larger products with constant weights, u8 inputs by s8 weights, summed in int32.

The ranges of the inputs are fixed at conversion.  Ranges found at run time would be those of the whole batch, and a
candidate's score would hang on its neighbours.  Weights have a scale per output, inputs one per part of what they are
concatenated from.  Meant for cores with VNNI: without it, ONNX Runtime adds pairs of products in 16 bits, which may
saturate.
Letters: K inputs, N outputs, E experts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

Feeds = dict[str, np.ndarray]

_LEAST_WEIGHTS = 4096  # K N of a product: below it, quantising the inputs costs what the product saves
_WEIGHT_STEPS = 127  # to each side of 0
_INPUT_STEPS = 255
_MOST_PARTS = 4  # of a concatenation that are quantised one by one
_CONTRIB = "com.microsoft"


@dataclass(frozen=True)
class Product:
    """A product with constant weights and the nodes that it takes the place of."""

    reads: str  # its input, [..., K]
    parts: tuple[str, ...]  # what the input is concatenated from, or the input itself
    writes: str  # its output, [..., N]
    weights: np.ndarray  # [K, N], or [E, K, N] where there is one per expert
    bias: str  # name of a constant [N], or ""
    replaces: tuple[str, ...]  # outputs of the nodes that go: the product, and the addition of its bias

    @property
    def worth_it(self) -> bool:
        return self.weights.ndim in (2, 3) and self.weights.shape[-2] * self.weights.shape[-1] >= _LEAST_WEIGHTS


@dataclass
class Span:
    """The values that a tensor took."""

    least: float = 0.0
    greatest: float = 0.0
    width: int = 0  # of the last axis

    def add(self, values: np.ndarray) -> None:
        self.least = min(self.least, float(values.min(initial=0)))
        self.greatest = max(self.greatest, float(values.max(initial=0)))
        self.width = values.shape[-1]

    def scale(self, zero: int) -> float:
        """Of one step, so that the values fit between 0 and 255 around `zero`."""
        below = -self.least / zero if zero else 0.0
        return max(below, self.greatest / (_INPUT_STEPS - zero)) or 1.0


def quantise(model: onnx.ModelProto, feeds: Iterable[Feeds], folder: Path) -> onnx.ModelProto:
    """A candidate tower with its larger products in int8.

    feeds: what the tower reads; the ranges of its inner values are taken from them.  folder: of tables.data
    """
    products = find_products(model)
    inputs = {name for product in products for name in (product.reads, *product.parts)}
    spans = _measure(model, sorted(inputs), feeds, folder)
    quantiser = _Quantiser(spans)
    made = {product.writes: quantiser.replace(product) for product in products}
    gone = {output for product in products for output in product.replaces}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        nodes += made.get(node.output[0], [] if node.output[0] in gone else [node])
    return _rebuilt(model, nodes, quantiser.tensors)


def find_products(model: onnx.ModelProto) -> list[Product]:
    """The products that are worth it, in the order of the graph."""
    graph = _Graph(model)
    found = [_product(node, graph) for node in model.graph.node if node.op_type in ("MatMul", "Gemm")]
    return [product for product in found if product is not None and product.worth_it]


class _Graph:
    """Who writes and reads what."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.writer = {output: node for node in model.graph.node for output in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in model.graph.node:
            for name in node.input:
                self.readers[name].append(node)

    def parts(self, name: str) -> tuple[str, ...]:
        """What a tensor is concatenated from, along whatever axis; itself where it is not, or from many."""
        node = self.writer.get(name)
        if node is None or node.op_type != "Concat" or len(node.input) > _MOST_PARTS:
            return (name,)
        return tuple(node.input)

    def bias_after(self, name: str, width: int) -> tuple[str, str]:
        """The constant [width] that is added to a product, and the sum; ("", "") when it is not that."""
        readers = self.readers[name]
        if len(readers) == 1 and readers[0].op_type == "Add":
            (other,) = [read for read in readers[0].input if read != name] or [""]
            if other in self.constants and list(self.constants[other].dims) == [width]:
                return other, str(readers[0].output[0])
        return "", ""


def _product(node: onnx.NodeProto, graph: _Graph) -> Product | None:
    """None where both factors vary, or a Gemm does more than multiply and add."""
    reads, constant, writes = node.input[0], node.input[1], node.output[0]
    if constant not in graph.constants or reads in graph.constants:
        return None
    weights = numpy_helper.to_array(graph.constants[constant])
    if node.op_type == "MatMul":
        bias, summed = graph.bias_after(writes, weights.shape[-1])
        gone = (writes, summed) if summed else (writes,)
        return Product(reads, graph.parts(reads), gone[-1], weights, bias, gone)
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if attributes.get("transA") or {attributes.get("alpha", 1.0), attributes.get("beta", 1.0)} != {1.0}:
        return None
    bias = node.input[2] if len(node.input) > 2 else ""
    weights = weights.T if attributes.get("transB") else weights
    return Product(reads, graph.parts(reads), writes, weights, bias, (writes,))


def _measure(model: onnx.ModelProto, names: list[str], feeds: Iterable[Feeds], folder: Path) -> dict[str, Span]:
    """Run the tower and look at inner values."""
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    tapped.graph.ClearField("value_info")
    tapped.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    options = ort.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    session = ort.InferenceSession(tapped.SerializeToString(), options, providers=["CPUExecutionProvider"])
    reads = [node.name for node in session.get_inputs()]
    spans = {name: Span() for name in names}
    for given in feeds:
        for name, values in zip(names, session.run(names, {name: given[name] for name in reads}), strict=True):
            spans[name].add(values)
    return spans


class _Quantiser:
    """Nodes and constants of the quantised products; what several products read is quantised once."""

    def __init__(self, spans: dict[str, Span]) -> None:
        self.spans = spans
        self.tensors: dict[str, onnx.TensorProto] = {}
        self._written: set[str] = set()

    def replace(self, product: Product) -> list[onnx.NodeProto]:
        """The scales of the inputs are in the weights, so that each part of an input can have its own."""
        parts = self._parts(product)
        zero = 128 if any(self.spans[part].least < 0 for part in parts) else 0
        steps = [np.full(self.spans[part].width, self.spans[part].scale(zero)) for part in parts]
        weights, scales = _quantised(product.weights * np.concatenate(steps)[:, None])
        name = f"{product.writes}_int8"
        reads = [
            _u8(product.reads, zero),
            self._constant(f"{name}_weights", weights),
            self._constant("int8_one", np.float32(1)),
            self._constant(f"{name}_scales", scales),
            self._constant(f"int8_zero_{zero}", np.uint8(zero)),
            self._constant(f"{name}_zeros", np.zeros(scales.shape, np.int8)),
            product.bias,
        ]
        reads = reads if product.bias else reads[:-1]
        made = helper.make_node("MatMulIntegerToFloat", reads, [product.writes], name=name, domain=_CONTRIB)
        return [*self._input(product.reads, parts, zero), made]

    def _parts(self, product: Product) -> tuple[str, ...]:
        """Those of the input, if they lie side by side along its last axis."""
        along_last = sum(self.spans[part].width for part in product.parts) == self.spans[product.reads].width
        return product.parts if along_last else (product.reads,)

    def _input(self, whole: str, parts: tuple[str, ...], zero: int) -> list[onnx.NodeProto]:
        nodes = [node for part in parts for node in self._part(part, zero)]
        if len(parts) > 1 and self._first(_u8(whole, zero)):
            joined = [_u8(part, zero) for part in parts]
            nodes.append(helper.make_node("Concat", joined, [_u8(whole, zero)], axis=-1))
        return nodes

    def _part(self, part: str, zero: int) -> list[onnx.NodeProto]:
        if not self._first(_u8(part, zero)):
            return []
        scale = self._constant(f"{_u8(part, zero)}_scale", np.float32(self.spans[part].scale(zero)))
        zero_point = self._constant(f"int8_zero_{zero}", np.uint8(zero))
        return [helper.make_node("QuantizeLinear", [part, scale, zero_point], [_u8(part, zero)])]

    def _first(self, name: str) -> bool:
        known = name in self._written
        self._written.add(name)
        return not known

    def _constant(self, name: str, values: np.ndarray | np.generic) -> str:
        self.tensors[name] = numpy_helper.from_array(np.asarray(values), name)
        return name


def _u8(name: str, zero: int) -> str:
    return f"{name}_u8_{zero}"


def _quantised(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 weights and their scales per output.  [.., K, N] -> [.., K, N], [N] or [E, 1, N]"""
    greatest = np.abs(weights).max(axis=-2, keepdims=True)
    scales = np.where(greatest > 0, greatest, 1) / _WEIGHT_STEPS
    whole = np.round(weights / scales).astype(np.int8)
    return whole, (scales[0] if weights.ndim == 2 else scales).astype(np.float32)


def _rebuilt(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], tensors: dict[str, onnx.TensorProto]
) -> onnx.ModelProto:
    """The model with other nodes, and of the constants those that they read."""
    rebuilt = onnx.ModelProto()
    rebuilt.CopyFrom(model)
    graph = rebuilt.graph
    read = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in (*model.graph.initializer, *tensors.values()) if tensor.name in read]
    for field in ("node", "initializer", "value_info"):
        graph.ClearField(field)
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
    if all(domain.domain != _CONTRIB for domain in rebuilt.opset_import):
        rebuilt.opset_import.append(helper.make_opsetid(_CONTRIB, 1))
    return rebuilt
