"""Values of Prometheus' client in files that outlive their process, written in less than half of the client's time.

The client's own class for several processes asks for the process id and looks for its place in the file at each count.
This one does so once, and again after a fork.  Files are the client's, and its collector reads them.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Sequence
from typing import Any, ClassVar

from prometheus_client import values
from prometheus_client.mmap_dict import MmapedDict, mmap_key

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable of the client: where the files are; not set in a process that is alone."""

_PAIR = struct.Struct("dd")  # value, time of a gauge: as the client writes them


class Cell:
    """One float, as prometheus_client.values.ValueClass."""

    _multiprocess = True
    _lock = threading.Lock()
    _files: ClassVar[dict[str, Any]] = {}
    _all: ClassVar[list[Cell]] = []
    _value: float

    def __init__(
        self,
        typ: str,
        metric_name: str,
        name: str,
        labelnames: Sequence[str],
        labelvalues: Sequence[str],
        help_text: str,
        multiprocess_mode: str = "",
        **_: Any,
    ) -> None:
        self._kind = f"{typ}_{multiprocess_mode}" if typ == "gauge" else typ
        self._key = mmap_key(metric_name, name, list(labelnames), list(labelvalues), help_text)
        with self._lock:
            self._open()
            self._all.append(self)

    def inc(self, amount: float) -> None:
        with self._lock:
            self._value += amount
            self._file._m[self._place] = _PAIR.pack(self._value, 0.0)

    def set(self, value: float, timestamp: float | None = None) -> None:
        with self._lock:
            self._value = value
            self._file._m[self._place] = _PAIR.pack(value, timestamp or 0.0)

    def get(self) -> float:
        return self._value

    def set_exemplar(self, exemplar: object) -> None:
        """The client keeps none with several processes."""

    def get_exemplar(self) -> None:
        return None

    @classmethod
    def after_fork(cls) -> None:
        """In the new process, which begins at zero, in files of its own."""
        cls._lock = threading.Lock()  # a thread that is not here may have held it
        for file in cls._files.values():
            file.close()
        cls._files.clear()
        for cell in cls._all:
            cell._open()

    def _open(self) -> None:
        """Find, or make, its place in the file of its kind."""
        if self._kind not in self._files:
            path = os.path.join(os.environ[FOLDER], f"{self._kind}_{os.getpid()}.db")
            self._files[self._kind] = MmapedDict(path)  # type: ignore[no-untyped-call]
        self._file = self._files[self._kind]
        self._value = self._file.read_value(self._key)[0]
        start = self._file._positions[self._key]
        self._place = slice(start, start + _PAIR.size)


def use_cells() -> None:
    """For all metrics that are made from now on, in a process that shares its metrics with others."""
    if FOLDER in os.environ and values.ValueClass is not Cell:
        values.ValueClass = Cell
        os.register_at_fork(after_in_child=Cell.after_fork)
