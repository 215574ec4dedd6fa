"""Of `farm bench peers`: blocks of load, now on one server, now on another, all on one core.

Whoever has no block is stopped (SIGSTOP): LitServe's batching loop and Ray's control plane use the core when idle too.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from loadtest.bench.memory import cpu_seconds
from loadtest.load.run import Load, LoadError, run_load

CLIENTS = 8
OPEN_CLIENTS = 64  # connections of the open loop: none waits for a free one
_WARM_UP_S = 0.5
_WAKE_S = 0.2  # for what a stopped server has to catch up with
_IDLE_S = 1.0

_T = TypeVar("_T")


@dataclass(frozen=True)
class Block:
    """What one block measured."""

    per_second: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float  # of all processes of the server, per answer


@dataclass
class Contestant:
    """A server, its blocks, and what went wrong with it."""

    name: str
    url: str
    pids: Callable[[], list[int]]  # all its processes
    least_seconds: float = 0.0  # of a block; slow servers need longer ones
    difference: float = 0.0  # the greatest, of its answers from the service's
    idle_cpu: float = 0.0  # share of the core while nobody asks
    closed: list[Block] = field(default_factory=list)
    open: list[Block] = field(default_factory=list)
    error: str | None = None  # of a block; it gets no more

    def stop(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Running meanwhile, stopped before and after."""
        self.resume()
        time.sleep(_WAKE_S)
        try:
            yield
        finally:
            self.stop()

    def measure_idle(self) -> None:
        with self.awake():
            self.idle_cpu = _cpu_of(self, lambda: time.sleep(_IDLE_S))[1] / _IDLE_S

    def _signal(self, number: signal.Signals) -> None:
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


@dataclass
class Traffic:
    """Requests in a file; every block takes others, until all were used."""

    path: Path
    count: int
    next: int = 0


def closed_blocks(contestants: Sequence[Contestant], traffic: Traffic, core: int, rounds: int, seconds: float) -> None:
    """Every client asks again when it is answered: the server is saturated."""
    _rounds(contestants, rounds, lambda one: one.closed.append(_block(one, traffic, core, seconds, None)))


def open_blocks(
    contestants: Sequence[Contestant], traffic: Traffic, core: int, rounds: int, seconds: float, rate: float
) -> None:
    """Poisson arrivals, `rate` requests/s, the same for all."""
    _rounds(contestants, rounds, lambda one: one.open.append(_block(one, traffic, core, seconds, rate)))


def _rounds(contestants: Sequence[Contestant], rounds: int, measure: Callable[[Contestant], None]) -> None:
    """In turn, forwards and backwards."""
    for number in range(rounds):
        for one in contestants if number % 2 == 0 else reversed(contestants):
            if one.error is None:
                try:
                    measure(one)
                except LoadError as error:
                    one.error = str(error)


def _block(one: Contestant, traffic: Traffic, core: int, seconds: float, rate: float | None) -> Block:
    clients = CLIENTS if rate is None else OPEN_CLIENTS
    seconds = max(seconds, one.least_seconds)
    load = Load(f"{one.url}/rank", traffic.path, clients, seconds, _WARM_UP_S, rate, first=traffic.next)
    with one.awake():
        result, cpu_s = _cpu_of(one, lambda: run_load(load, core))
    traffic.next = (traffic.next + result.answered) % traffic.count
    if result.errors or set(result.statuses) != {200}:
        raise LoadError(f"statuses {result.statuses}, {result.errors} requests without an answer")
    return Block(result.per_second, result.p50_ms, result.p99_ms, 1000 * cpu_s / result.answered)


def _cpu_of(one: Contestant, call: Callable[[], _T]) -> tuple[_T, float]:
    """What it returns, and the CPU that the server used meanwhile [s]; of the processes that were there throughout."""
    before = {pid: cpu_seconds([pid]) for pid in one.pids()}
    found = call()
    after = {pid: cpu_seconds([pid]) for pid in one.pids()}
    return found, sum(after[pid] - before.get(pid, 0.0) for pid in after)
