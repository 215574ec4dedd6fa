"""User states on a device: rows ("slots") of one tensor for each state tensor.

The candidate tower reads its user's row by `tile_user`, so the whole pool is its state input: nothing is gathered for a
batch, and the addresses never change, as CUDA graphs need.  A kept state is the number of its row.
Letters: S slots.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from itertools import groupby

import numpy as np
import onnxruntime as ort

from model.artifact.batch import EngineError
from model.artifact.device import Device
from model.artifact.manifest import TensorSpec

_KEPT_VIEWS = 8192


class Slot:
    """A user's row, free again when nobody holds this any more."""

    __slots__ = ("_free", "row")

    def __init__(self, row: int, free: np.ndarray) -> None:
        self.row, self._free = row, free

    def __del__(self) -> None:
        self._free[self.row] = True


class StatePool:
    """The tensors [S, ...] and which rows are free.  Thread safe."""

    def __init__(self, device: Device, specs: Sequence[TensorSpec], slots: int) -> None:
        self._device = device
        self._specs = {spec.name: spec for spec in specs}
        self.tensors = {spec.name: device.empty((slots, *spec.shape), spec.dtype) for spec in specs}
        self._free = np.ones(slots, bool)
        self._lock = threading.Lock()
        self._view = lru_cache(_KEPT_VIEWS)(partial(_new_view, device, self._specs))  # without self: no circle

    def take(self, count: int) -> list[Slot]:
        """Rows for new states, neighbours as far as possible.  EngineError when all are held."""
        with self._lock:
            rows = free_rows(self._free, count)
            if len(rows) < count:
                held = len(self._free) - int(self._free.sum())
                raise EngineError(
                    f"state_slots: {held} of {len(self._free)} are held and {count} more are asked for; "
                    "raise state_slots or keep fewer states"
                )
            self._free[rows] = False
        return [Slot(row, self._free) for row in rows]

    def store(self, states: dict[str, ort.OrtValue], slots: Sequence[Slot]) -> None:
        """Copy the first rows of [U, ...] tensors to the slots, neighbours at once."""
        for source, target, count in runs([slot.row for slot in slots]):
            for name, tensor in self.tensors.items():
                rows = self._view(name, tensor.data_ptr(), target, count)
                self._device.copy(self._view(name, states[name].data_ptr(), source, count), rows)


def _new_view(
    device: Device, specs: Mapping[str, TensorSpec], name: str, address: int, first: int, count: int
) -> ort.OrtValue:
    spec = specs[name]
    row_bytes = int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize
    return device.view(address + first * row_bytes, (count, *spec.shape), spec.dtype)


def free_rows(free: np.ndarray, count: int) -> list[int]:
    """`count` free rows, ascending: the first that lie together, or just the first; fewer when there are fewer."""
    rows = np.flatnonzero(free)
    if count and len(rows) >= count:
        together = np.flatnonzero(rows[count - 1 :] - rows[: len(rows) - count + 1] == count - 1)
        start = int(together[0]) if len(together) else 0
        rows = rows[start : start + count]
    return [int(row) for row in rows[:count]]


def runs(rows: Sequence[int]) -> list[tuple[int, int, int]]:
    """Neighbours among rows: index of the first of each run, its row, how many.

    >>> runs([4, 5, 6, 9])
    [(0, 4, 3), (3, 9, 1)]
    """
    found = []
    for _, group in groupby(enumerate(rows), key=lambda pair: pair[1] - pair[0]):
        pairs = list(group)
        found.append((*pairs[0], len(pairs)))
    return found
