"""Memory of a GPU through ONNX Runtime's public API: tensors, views into them, copies between them.

With the kind "cpu" the same calls work on the host's memory, which is how they are tested without a GPU.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import onnxruntime as ort

_log = logging.getLogger(__name__)


class Device:
    """Where sessions run and their tensors lie."""

    def __init__(self, kind: str, index: int, session: ort.InferenceSession) -> None:
        """kind: "cuda" or "cpu";  session: any, it lends its first output's name to make views."""
        self.kind, self.index = kind, index
        self._binding = session.io_binding()
        self._name = session.get_outputs()[0].name
        self._lock = threading.Lock()
        self._owners: list[ort.OrtValue] = []  # of what `place` returned
        self._copies_within = True

    def empty(self, shape: Sequence[int], dtype: np.dtype | str) -> ort.OrtValue:
        """A tensor of zeros."""
        value = ort.OrtValue.ortvalue_from_shape_and_type(tuple(shape), np.dtype(dtype).type, self.kind, self.index)
        value.update_inplace(np.zeros(shape, dtype))
        return value

    def view(self, address: int, shape: Sequence[int], dtype: np.dtype | str) -> ort.OrtValue:
        """A tensor in memory that another owns and that must outlive it.

        Python can make one only by binding an address as an output.
        """
        with self._lock:
            self._binding.clear_binding_outputs()
            self._binding.bind_output(self._name, self.kind, self.index, np.dtype(dtype).type, tuple(shape), address)
            view: ort.OrtValue = self._binding.get_outputs()[0]
        return view

    def copy(self, source: ort.OrtValue, target: ort.OrtValue) -> None:
        """Within the device; through the host where this ONNX Runtime cannot."""
        try:
            if self._copies_within:
                target.update_inplace(source)
                return
        except Exception as error:  # its own errors share no base class
            _log.warning("engine: user states are copied through the host, since ONNX Runtime says: %s", error)
            self._copies_within = False
        target.update_inplace(source.numpy())

    def place(self, table: np.ndarray) -> ort.OrtValue:
        """A table, copied to the device: SharedTables gives it to all sessions, as memory that they do not own."""
        owner = ort.OrtValue.ortvalue_from_numpy(table, self.kind, self.index)
        self._owners.append(owner)
        return self.view(owner.data_ptr(), table.shape, table.dtype)


class CaptureGate:
    """Runs side by side, captures of CUDA graphs alone in the process.

    A capture fails when any other thread calls CUDA meanwhile (cudaStreamCaptureModeGlobal).
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running, self._capturing = 0, 0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Waits for captures, those too that wait themselves, so that they are not starved."""
        with self._changed:
            self._changed.wait_for(lambda: not self._capturing)
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    @contextmanager
    def capturing(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._capturing)
            self._capturing = 1
            self._changed.wait_for(lambda: not self._running)
        try:
            yield
        finally:
            with self._changed:
                self._capturing = 0
                self._changed.notify_all()
