"""Of `farm bench faults`: what its parts share, beside the stores and services of `farm bench service`."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from loadtest.bench.faults_sizes import Sizes
from loadtest.bench.memory import descendants
from loadtest.bench.service_lab import Bodies, Lab, Service
from loadtest.load.figures import LoadResult
from loadtest.load.run import Load, RunningLoad, loading, run_load
from loadtest.load.trace import Trace

CANDIDATES = 200
CONNECTIONS = 256  # of an open loop: more than ever wait
CLIENTS = 16  # of a closed loop, which saturate a core
KEEP_EVERY = 20  # of the answers that are looked at

_LOOK_S = 0.5
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass
class Ground:
    """Where faults happen."""

    lab: Lab
    sizes: Sizes
    _peaks: dict[str, float] = field(default_factory=dict)  # answers per second, by kind of service

    def bodies(self) -> Bodies:
        """Requests that nobody has sent before."""
        return self.lab.bodies([CANDIDATES], self.sizes.bodies)

    def load(self, url: str, bodies: Bodies, seconds: float, rate: float, **options: Any) -> Load:
        """An open loop of that many requests per second, of which everything is told."""
        fixed = {"warm_up_s": 0.0, "keep_every": KEEP_EVERY, "trace": True, "first": bodies.next}
        return Load(f"{url}/rank", bodies.path, CONNECTIONS, seconds, rate=rate, **{**fixed, **options})

    def run(self, url: str, bodies: Bodies, seconds: float, rate: float, **options: Any) -> LoadResult:
        found = run_load(self.load(url, bodies, seconds, rate, **options), self.lab.cores.others)
        bodies.next = (bodies.next + len(found.traced())) % bodies.count
        return found

    @contextmanager
    def loading(self, url: str, bodies: Bodies, seconds: float, rate: float, **options: Any) -> Iterator[RunningLoad]:
        """The same while something else is done; it has begun."""
        with loading(self.load(url, bodies, seconds, rate, **options), self.lab.cores.others) as running:
            running.wait_begun()
            yield running

    def peak(self, service: Service, kind: str) -> float:
        """Answers per second of a saturated service, measured once for each kind."""
        if kind not in self._peaks:
            bodies = self.bodies()
            load = Load(f"{service.process.url}/rank", bodies.path, CLIENTS, self.sizes.peak_s)
            found = [run_load(load, self.lab.cores.others) for _ in range(self.sizes.peak_rounds)]
            self._peaks[kind] = median(round_.per_second for round_ in found)
        return self._peaks[kind]


@dataclass(frozen=True)
class Usage:
    """Of some processes together, at a moment."""

    at: float  # time.perf_counter
    rss_mb: float
    fds: int
    threads: int


class Watched:
    """Looks at a service's processes twice a second."""

    def __init__(self, pid: int) -> None:
        self._pid, self._ended = pid, threading.Event()
        self.usages: list[Usage] = []
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Watched:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def rss_growth(self) -> float:
        """RSS of the last third over that of the second, medians."""
        rss = np.array([usage.rss_mb for usage in self.usages])
        third = len(rss) // 3
        return float(np.median(rss[-third:]) / np.median(rss[third : 2 * third])) if third else 1.0

    def _look(self) -> None:
        while not self._ended.wait(_LOOK_S):
            self.usages.append(usage_of(self._pid))


def usage_of(pid: int) -> Usage:
    """Of a process and all below it; of those that are there."""
    rss = fds = threads = 0
    for one in descendants(pid):
        try:
            rss += int(Path(f"/proc/{one}/statm").read_text().split()[1]) * _PAGE
            fds += len(os.listdir(f"/proc/{one}/fd"))
            threads += len(os.listdir(f"/proc/{one}/task"))
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
    return Usage(time.perf_counter(), rss / 1e6, fds, threads)


def unanswered(load: LoadResult) -> int:
    """Requests that were not answered with 200, those that were never sent too."""
    return load.errors + sum(count for status, count in load.statuses.items() if status != 200)


def p99(trace: Trace) -> float | None:
    """[ms] None of no requests."""
    return float(np.percentile(trace.ms, 99)) if len(trace) else None


def service_ms(trace: Trace) -> np.ndarray:
    """[R] ms from when each was sent: without the wait for a connection, which is the generator's."""
    return np.asarray(1000 * (trace.done - trace.sent))
