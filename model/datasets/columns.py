"""Columns on disk: one .npy file each, appended to, permuted, memory-mapped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np


class ColumnWriter:
    """A folder of .npy files, one per column, each appended to: byte for byte what np.save of the whole would write."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._files: dict[str, BinaryIO] = {}
        self._shapes: dict[str, tuple[np.dtype, list[int]]] = {}

    def append(self, columns: Mapping[str, np.ndarray]) -> None:
        """Add rows to columns; a column keeps the dtype and the width of its first rows."""
        for name, values in columns.items():
            if name not in self._files:
                self._files[name] = (self._folder / f"{name}.npy").open("w+b")
                self._shapes[name] = (values.dtype, [0, *values.shape[1:]])
                self._write_header(name)
            dtype, shape = self._shapes[name]
            if (dtype, shape[1:]) != (values.dtype, list(values.shape[1:])):
                raise ValueError(f"{name}: {values.dtype} {values.shape} does not go on {dtype} {tuple(shape)}")
            shape[0] += len(values)
            self._files[name].write(np.ascontiguousarray(values).data)

    @property
    def rows(self) -> int:
        """Rows so far.  ValueError names a column that has more or fewer than the others."""
        rows = {name: shape[0] for name, (_, shape) in self._shapes.items()}
        if len(set(rows.values())) > 1:
            raise ValueError(f"columns of different lengths: {rows}")
        return next(iter(rows.values()), 0)

    def _write_header(self, name: str) -> None:
        """NumPy pads the header so that the number of rows can grow in place."""
        dtype, shape = self._shapes[name]
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": tuple(shape)}
        np.lib.format.write_array_header_1_0(self._files[name], header)

    def close(self) -> None:
        for name, file in self._files.items():
            file.seek(0)
            self._write_header(name)
            file.close()
        self._files.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def map_columns(folder: Path) -> dict[str, np.ndarray]:
    """Every column of a folder, memory-mapped."""
    return {file.stem: np.load(file, mmap_mode="r") for file in sorted(folder.glob("*.npy"))}


def permute_columns(source: Path, out: Path, order: np.ndarray) -> None:
    """Write the rows `order` [N] of every column, one column in memory at a time."""
    out.mkdir()
    for file in sorted(source.glob("*.npy")):
        np.save(out / file.name, np.load(file)[order])
