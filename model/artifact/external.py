"""Which tensors of a graph lie in tables.data, read from the ONNX file.

Its protobuf fields that matter here are few, and a serving image has no `onnx`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.artifact.manifest import TABLES, ArtifactError

# Field numbers of onnx.proto
_MODEL_GRAPH, _GRAPH_INITIALIZER = 7, 5
_DIMS, _DATA_TYPE, _NAME, _EXTERNAL_DATA = 1, 2, 8, 13
_KEY, _VALUE = 1, 2
_DTYPES = {1: "<f4", 2: "u1", 3: "i1", 6: "<i4", 7: "<i8", 10: "<f2", 11: "<f8"}

_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5  # wire types of protobuf


@dataclass(frozen=True)
class Table:
    """Where a tensor lies in tables.data."""

    dtype: str
    shape: tuple[int, ...]
    offset: int  # bytes

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


def tables_of(graph: Path) -> list[tuple[str, Table]]:
    """The initializers of an ONNX file that lie in tables.data, by name.  ArtifactError when it is no such graph."""
    try:
        model = memoryview(graph.read_bytes())
        (inner,) = [value for number, value in _fields(model) if number == _MODEL_GRAPH]
        found = [_table(_message(value)) for number, value in _fields(_message(inner)) if number == _GRAPH_INITIALIZER]
    except (ValueError, IndexError, KeyError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{graph}: no ONNX graph that this version reads ({error})") from error
    return [table for table in found if table is not None]


def _table(tensor: memoryview) -> tuple[str, Table] | None:
    """A TensorProto that lies in tables.data, with its name; None for others."""
    dims: list[int] = []
    name, dtype, place = "", 0, {}
    for number, value in _fields(tensor):
        if number == _DIMS:
            dims += [value] if isinstance(value, int) else _packed(value)
        elif number == _DATA_TYPE and isinstance(value, int):
            dtype = value
        elif number == _NAME:
            name = str(_message(value), "utf-8")
        elif number == _EXTERNAL_DATA:
            entry = {key: str(_message(text), "utf-8") for key, text in _fields(_message(value))}
            place[entry[_KEY]] = entry[_VALUE]
    if place.get("location") != TABLES:
        return None
    return name, Table(_DTYPES[dtype], tuple(dims), int(place.get("offset", 0)))


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Field number and value of each field; those of fixed width, which are not read here, are left out."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield key >> 3, value
        elif kind == _BYTES:
            size, at = _varint(message, at)
            yield key >> 3, message[at : at + size]
            at += size
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            at += 8 if kind == _EIGHT_BYTES else 4
        else:
            raise ValueError(f"wire type {kind}")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number that begins at a byte, and the byte behind it."""
    value = shift = 0
    while message[at] & 0x80:
        value |= (message[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
    return value | message[at] << shift, at + 1


def _packed(values: memoryview) -> list[int]:
    found, at = [], 0
    while at < len(values):
        value, at = _varint(values, at)
        found.append(value)
    return found


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where bytes belong")
    return value
