"""The embedding tables: mapped once by a process, shared with all others, read by both towers where they lie.

ONNX Runtime by itself maps each table once for each tower, and each page when a request first reads it.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort

from model.artifact.external import Table, tables_of
from model.artifact.manifest import TABLES, ArtifactError

Place = Callable[[np.ndarray], ort.OrtValue]


class SharedTables:
    """tables.data in memory, for any number of sessions, which must not outlive it."""

    def __init__(self, folder: Path, place: Place = ort.OrtValue.ortvalue_from_numpy) -> None:
        """place: a table to where the sessions run; on the CPU it stays in the mapped file."""
        self._folder, self._place = folder, place
        self._mapped = map_file(folder / TABLES)
        self._values: dict[Table, ort.OrtValue] = {}  # without the name, which differs between the towers

    def give(self, options: ort.SessionOptions, tower: str) -> None:
        """Make the tables the initializers of a session over a tower's file.  ArtifactError when one is not in it."""
        for name, table in tables_of(self._folder / tower):
            if table not in self._values:
                self._values[table] = self._place(self._view(table))
            options.add_initializer(name, self._values[table])

    def _view(self, table: Table) -> np.ndarray:
        end = table.offset + table.bytes
        if end > len(self._mapped):
            raise ArtifactError(f"{self._folder / TABLES}: a table ends at byte {end}, the file at {len(self._mapped)}")
        return self._mapped[table.offset : end].view(table.dtype).reshape(table.shape)


def map_file(path: Path) -> np.ndarray:
    """The bytes of a file, read only, in memory that all processes share; they are read now, not by a request."""
    if not path.stat().st_size:
        return np.empty(0, np.uint8)
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=mmap.PROT_READ)
    return np.frombuffer(mapped, np.uint8)
