"""The files of a graph: dense weights beside it, the embedding tables of both graphs in one file."""

from __future__ import annotations

import re
from pathlib import Path

import onnx
from onnx.external_data_helper import set_external_data
from torch import Tensor

from model.artifact.manifest import TABLES
from model.farm import Ranker

_TABLE_NAME = re.compile(r"(?:^|\.)tables\.(\w+)\.weight$")
_INLINE_BYTES = 1024  # weights below it stay in the graph file
_ALIGNMENT = 4096  # of a table's offset, so that it can be memory-mapped


def write_tables(model: Ranker, path: Path) -> dict[str, int]:
    """All embedding tables in one file, float32 little-endian; returns the offset of each by its key."""
    offsets: dict[str, int] = {}
    with path.open("wb") as file:
        for key, table in model.tables.items():
            file.write(b"\0" * (-file.tell() % _ALIGNMENT))
            offsets[key] = file.tell()
            weight = table.weight
            assert isinstance(weight, Tensor)
            file.write(weight.detach().numpy().astype("<f4").tobytes())
    return offsets


def save_graph(graph: onnx.ModelProto, path: Path, table_offsets: dict[str, int], shapes: bool) -> None:
    """Write a graph: tables point into tables.data, dense weights go to a file beside it, names of tables are kept.

    shapes: keep the shapes of intermediate tensors.  Without them ONNX Runtime does not know that a softmax's input and
    output are alike, and so does not compute it in place, which was measured to take half as long again on a CPU.
    """
    _strip(graph)
    if not shapes:
        graph.graph.ClearField("value_info")
    data = path.with_suffix(".data")
    with data.open("wb") as file:
        for tensor in graph.graph.initializer:
            raw = onnx.numpy_helper.to_array(tensor).tobytes()
            table = _TABLE_NAME.search(tensor.name)
            if table:
                _refer(tensor, TABLES, table_offsets[table[1]], len(raw))
            elif len(raw) >= _INLINE_BYTES:
                file.write(b"\0" * (-file.tell() % 64))
                offset = file.tell()
                file.write(raw)
                _refer(tensor, data.name, offset, len(raw))
    path.write_bytes(graph.SerializeToString())


def _strip(graph: onnx.ModelProto) -> None:
    """Drop what the exporter noted about its sources: stack traces, with paths of the machine, in every node."""
    graph.ClearField("metadata_props")
    parts = [graph.graph, *graph.graph.node, *graph.graph.value_info, *graph.graph.input, *graph.graph.output]
    for part in [*parts, *graph.graph.initializer]:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def _refer(tensor: onnx.TensorProto, file: str, offset: int, length: int) -> None:
    set_external_data(tensor, file, offset, length)
    tensor.ClearField("raw_data")
    tensor.ClearField("float_data")
