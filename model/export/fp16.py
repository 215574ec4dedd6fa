"""A tower in fp16, for CUDA: every float is halved; ids, times and what is compared with them are int64 and stay so."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
from onnx.external_data_helper import ExternalDataInfo
from onnxruntime.transformers.float16 import convert_float_to_float16

from model.artifact.manifest import TABLES
from model.export.weights import TABLE_ALIGNMENT, align, is_table, refer

_PROBABILITIES = "probabilities"
_CHUNK = 1 << 20  # numbers of a table that are in memory at once
_GREATEST = float(np.finfo(np.float16).max)


def halve(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph in fp16; the user state is fp16 too, the probabilities are float32.

    Constants beyond 65,504, as masks have, become that.  Embedding tables still refer to float32: see `halve_tables`.
    """
    tables = {t.name: _copy(t) for t in model.graph.initializer if is_table(t)}
    _replace(model, {name: _one_row(table) for name, table in tables.items()})
    model.graph.ClearField("value_info")  # shape inference fails on the exporter's names
    halved: onnx.ModelProto = convert_float_to_float16(model, keep_io_types=[_PROBABILITIES], disable_shape_infer=True)
    _replace(halved, tables)
    return halved


def halve_tables(models: list[onnx.ModelProto], source: Path, folder: Path) -> None:
    """Write tables.data in fp16 and let the graphs refer to it; a table of several graphs is written once."""
    offsets: dict[int, int] = {}
    with (folder / TABLES).open("wb") as file:
        for table in (t for model in models for t in model.graph.initializer if is_table(t)):
            offset, count = ExternalDataInfo(table).offset or 0, int(np.prod(table.dims))
            if offset not in offsets:
                offsets[offset] = align(file, TABLE_ALIGNMENT)
                _write_halved(np.memmap(source / TABLES, np.dtype("<f4"), "r", offset, (count,)), file)
            table.data_type = onnx.TensorProto.FLOAT16
            refer(table, TABLES, offsets[offset], 2 * count)


def _write_halved(numbers: np.ndarray, file: BinaryIO) -> None:
    for start in range(0, len(numbers), _CHUNK):
        file.write(numbers[start : start + _CHUNK].clip(-_GREATEST, _GREATEST).astype("<f2").tobytes())


def _one_row(table: onnx.TensorProto) -> onnx.TensorProto:
    """Stands for a table in the conversion, which reads all weights."""
    return onnx.numpy_helper.from_array(np.zeros((1, *table.dims[1:]), np.float32), table.name)


def _copy(tensor: onnx.TensorProto) -> onnx.TensorProto:
    copy = onnx.TensorProto()
    copy.CopyFrom(tensor)
    return copy


def _replace(model: onnx.ModelProto, tensors: dict[str, onnx.TensorProto]) -> None:
    for tensor in model.graph.initializer:
        if tensor.name in tensors:
            tensor.CopyFrom(tensors[tensor.name])
