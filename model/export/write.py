"""The files of a graph: dense weights beside it, the embedding tables of both graphs in one file."""

from __future__ import annotations

import re
from pathlib import Path

import onnx
from torch import Tensor

from model.artifact.manifest import TABLES
from model.export import weights
from model.farm import Ranker

_TABLE_NAME = re.compile(r"(?:^|\.)tables\.(\w+)\.weight$")


def write_tables(model: Ranker, path: Path) -> dict[str, int]:
    """All embedding tables in one file, float32 little-endian; returns the offset of each by its key."""
    offsets: dict[str, int] = {}
    with path.open("wb") as file:
        for key, table in model.tables.items():
            offsets[key] = weights.align(file, weights.TABLE_ALIGNMENT)
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
    for tensor in graph.graph.initializer:
        if table := _TABLE_NAME.search(tensor.name):
            length = onnx.numpy_helper.to_array(tensor).nbytes
            weights.refer(tensor, TABLES, table_offsets[table[1]], length)
    weights.save_graph(graph, path)


def _strip(graph: onnx.ModelProto) -> None:
    """Drop what the exporter noted about its sources: stack traces, with paths of the machine, in every node."""
    graph.ClearField("metadata_props")
    parts = [graph.graph, *graph.graph.node, *graph.graph.value_info, *graph.graph.input, *graph.graph.output]
    for part in [*parts, *graph.graph.initializer]:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
