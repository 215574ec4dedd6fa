"""Graphs of an artifact for rewriting: dense weights in memory, embedding tables left in tables.data.

A tensor whose data are in a file is external; those of tables.data are never loaded, they may be gigabytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import onnx
from onnx.external_data_helper import (
    ExternalDataInfo,
    load_external_data_for_tensor,
    set_external_data,
    uses_external_data,
)

from model.artifact.manifest import TABLES

TABLE_ALIGNMENT = 4096  # of a table's offset, so that it can be memory-mapped
_INLINE_BYTES = 1024  # weights below it stay in the graph file
_ALIGNMENT = 64
_INLINE_FIELDS = ("raw_data", "float_data", "int32_data", "int64_data")


def load_graph(path: Path) -> onnx.ModelProto:
    """A tower with its dense weights; only embedding tables stay external."""
    model = onnx.load(str(path), load_external_data=False)
    for tensor in model.graph.initializer:
        if uses_external_data(tensor) and not is_table(tensor):
            load_external_data_for_tensor(tensor, str(path.parent))
            tensor.data_location = onnx.TensorProto.DEFAULT
            tensor.ClearField("external_data")
    return model


def save_graph(model: onnx.ModelProto, path: Path) -> None:
    """Write a tower, its dense weights beside it; what is external stays so."""
    data = path.with_suffix(".data")
    with data.open("wb") as file:
        for tensor in model.graph.initializer:
            if uses_external_data(tensor):
                continue
            raw = onnx.numpy_helper.to_array(tensor).tobytes()
            if len(raw) >= _INLINE_BYTES:
                refer(tensor, data.name, align(file, _ALIGNMENT), len(raw))
                file.write(raw)
    path.write_bytes(model.SerializeToString())


def is_table(tensor: onnx.TensorProto) -> bool:
    return uses_external_data(tensor) and ExternalDataInfo(tensor).location == TABLES


def refer(tensor: onnx.TensorProto, file: str, offset: int, length: int) -> None:
    """Make a tensor external: its data are `length` bytes of `file`."""
    tensor.raw_data = b""  # set_external_data asks for it
    set_external_data(tensor, file, offset, length)
    for field in _INLINE_FIELDS:
        tensor.ClearField(field)


def align(file: BinaryIO, alignment: int) -> int:
    """Pad a file with zeros to a multiple of `alignment`; returns the offset."""
    file.write(b"\0" * (-file.tell() % alignment))
    return file.tell()
