"""The metrics of all workers, read by the parent from the files that prometheus_client keeps for each of them.

The folder is PROMETHEUS_MULTIPROC_DIR of the workers.  The parent counts in it whom the door of the admin port refuses;
it does not import service.metrics.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

METRICS_TYPE = CONTENT_TYPE_LATEST

_ENDED = 0  # stands for the process id of all workers that have ended


class Scrape:
    """Exact totals over the workers that live and those that have ended; gauges of those that live."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._lock = folder, threading.Lock()

    def text(self, *others: Collector) -> bytes:
        """In Prometheus' text format.  others: collectors of the parent itself."""
        registry = CollectorRegistry()
        for collector in others:
            registry.register(collector)
        with self._lock:
            MultiProcessCollector(registry, str(self._folder))  # type: ignore[no-untyped-call]
            return generate_latest(registry)

    def bury(self, pid: int) -> None:
        """A worker has ended: add its counts to those of the ended, drop its gauges.

        So the files do not grow in number, and a new process with the same id begins at zero.
        """
        with self._lock:
            for file in self._folder.glob(f"*_{pid}.db"):
                kind = file.name.removesuffix(f"_{pid}.db")
                if not kind.startswith("gauge"):
                    _add(file, self._folder / f"{kind}_{_ENDED}.db")
                file.unlink()


def _add(source: Path, target: Path) -> None:
    sums = MmapedDict(str(target))  # type: ignore[no-untyped-call]
    for key, value, _, _ in MmapedDict.read_all_values_from_file(str(source)):  # type: ignore[no-untyped-call]
        before, _ = sums.read_value(key)  # type: ignore[no-untyped-call]
        sums.write_value(key, before + value, time.time())  # type: ignore[no-untyped-call]
    sums.close()  # type: ignore[no-untyped-call]
