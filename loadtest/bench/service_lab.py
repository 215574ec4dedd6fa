"""Of `farm bench service`: the service under load, its answers, its CPU and that of its towers."""

from __future__ import annotations

import json
import tempfile
import urllib.request
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from prometheus_client.parser import text_string_to_metric_families

from loadtest.bench.cores import Cores
from loadtest.bench.memory import cpu_seconds
from loadtest.bench.service_stores import AUTHORS, NOW_MS, Backend, filled_store
from loadtest.bench.store_data import author_ids, user_ids
from loadtest.load.figures import LoadResult
from loadtest.load.run import Load, run_load
from loadtest.load.traffic import ZIPF_EXPONENT, rank_bodies
from loadtest.process import ServiceProcess, running_service

TOP_K = 50
STEP_MS = 61_000  # between requests: longer than the lag quantum, so that no state of a user serves two requests
TOWER_CPU = "farm_tower_cpu_seconds_total"
STATE_LOOKS = "farm_state_cache_requests_total"

_LOAD_FIGURES = ("per_second", "p50_ms", "p95_ms", "p99_ms", "p999_ms", "max_ms", "generator_cpu_share", "late_p99_ms")
_APART_MS = 40 * 24 * 3_600_000
_WARM_UP_S = 0.3  # of a block: caches are full since the first
_FILL_S = 1.0  # of the first block of a service: as many requests as it takes to ask for every author
_KEEP_EVERY = 50  # of the answers that are looked at

K = TypeVar("K", bound=Hashable)


class BenchError(RuntimeError):
    """What was measured is not what was meant."""


@dataclass
class Bodies:
    """Requests in a file, of which every load takes others, until all were used."""

    path: Path
    count: int
    users: int
    next: int = 0


@dataclass(frozen=True)
class Block:
    """One run of the load generator against one service."""

    load: LoadResult
    cpu_ms: float  # of the workers, per answer
    tower_ms: dict[str, float]  # CPU of the towers, per answer
    hit_share: float  # of requests, whose user's state was kept

    @property
    def rest_ms(self) -> float:
        """CPU of everything that is no tower, per answer."""
        return self.cpu_ms - sum(self.tower_ms.values())


@dataclass(frozen=True)
class Service:
    """A running service."""

    process: ServiceProcess
    cores: Cores

    def pids(self) -> list[int]:
        """Of the workers."""
        return [worker["pid"] for worker in self.process.workers()]

    def metric(self, name: str) -> dict[str, float]:
        """A counter with one label, by the label's values."""
        with urllib.request.urlopen(f"{self.process.admin_url}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        found = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == name:
                    found[next(iter(sample.labels.values()))] = sample.value
        if not found:
            raise BenchError(f"the service has no metric {name}")
        return found

    def block(self, bodies: Bodies, clients: int, seconds: float, **options: Any) -> Block:
        """options: further fields of Load.  BenchError when an answer is degraded or an error."""
        load = Load(
            f"{self.process.url}/rank",
            bodies.path,
            clients,
            seconds,
            **{"first": bodies.next, "keep_every": _KEEP_EVERY, "warm_up_s": _WARM_UP_S, **options},
        )
        towers, looks = self.metric(TOWER_CPU), self.metric(STATE_LOOKS)
        pids = self.pids()
        cpu_s = cpu_seconds(pids)
        result = run_load(load, self.cores.others)
        cpu_s = cpu_seconds(pids) - cpu_s
        bodies.next = (bodies.next + result.answered) % bodies.count
        _require_good(result)
        tower_s, looks = _grown(towers, self.metric(TOWER_CPU)), _grown(looks, self.metric(STATE_LOOKS))
        per_answer = {tower: 1000 * seconds / result.answered for tower, seconds in tower_s.items()}
        hit_share = looks["hit"] / max(1.0, sum(looks.values()))
        return Block(result, 1000 * cpu_s / result.answered, per_answer, hit_share)


@dataclass
class Lab:
    """Makes stores, bodies and services, each once, and ends them."""

    artifact: Path
    folder: Path
    users: int  # of the stores that several parts use
    environment: Mapping[str, str] = field(default_factory=dict)  # of services
    cores: Cores = field(default_factory=Cores.of_this_process)
    _stack: ExitStack = field(default_factory=ExitStack)
    _services: dict[Backend, Service] = field(default_factory=dict)
    _urls: dict[tuple[Backend, int], str] = field(default_factory=dict)
    _bodies: int = 0

    def service(self, backend: Backend) -> Service:
        """One worker over the store of `users`, as it comes, kept running for all parts."""
        if backend not in self._services:
            self._services[backend] = self._stack.enter_context(self.another(self.store(backend)))
        return self._services[backend]

    def store(self, backend: Backend) -> str:
        """The URL of the store of `users`."""
        key = backend, self.users
        if key not in self._urls:
            made = filled_store(backend, self.users, self.folder, {self.cores.others})
            self._urls[key] = self._stack.enter_context(made)
        return self._urls[key]

    @contextmanager
    def another(
        self, store: str, *options: str, artifact: Path | None = None, cpus: set[int] | None = None, **environment: Any
    ) -> Iterator[Service]:
        """A service of its own over a store, on the service's core unless told otherwise."""
        given: dict[str, Any] = {"cpus": cpus or {self.cores.service}, **self.environment, **environment}
        with running_service(artifact or self.artifact, store, *options, **given) as process:
            yield Service(process, self.cores)

    def bodies(
        self,
        counts: Sequence[int],
        requests: int,
        step_ms: int = STEP_MS,
        exponent: float = ZIPF_EXPONENT,
        users: int | None = None,
    ) -> Bodies:
        """Requests for the first `users` of a store.  step_ms: of their times."""
        self._bodies += 1
        users = users or self.users
        path = self.folder / f"bodies-{self._bodies}"
        ids = user_ids(users), author_ids(AUTHORS)
        now_ms = NOW_MS + self._bodies * _APART_MS  # no file asks for states of another
        rank_bodies(path, *ids, counts, requests, TOP_K, now_ms, self._bodies, step_ms, exponent)
        return Bodies(path, requests, users)

    def close(self) -> None:
        self._stack.close()


@contextmanager
def open_lab(artifact: Path, users: int, **environment: str) -> Iterator[Lab]:
    """With a folder that is removed at the end.  environment: of services."""
    with tempfile.TemporaryDirectory(prefix="farm-bench-") as folder:
        lab = Lab(artifact, Path(folder), users, environment)
        try:
            yield lab
        finally:
            lab.close()


def interleave(ways: Mapping[K, Callable[[float], Block]], rounds: int, seconds: float) -> dict[K, list[Block]]:
    """`rounds` blocks of each way of loading, in alternation, forwards and backwards; an uncounted one of each first,
    which fills caches.  Each is given its seconds."""
    blocks: dict[K, list[Block]] = {key: [] for key in ways}
    for measure in ways.values():
        measure(max(seconds, _FILL_S))
    for number in range(rounds):
        for key in list(ways) if number % 2 == 0 else reversed(list(ways)):
            blocks[key].append(ways[key](seconds))
    return blocks


def summary(blocks: Sequence[Block]) -> dict[str, Any]:
    """Medians over blocks of one kind of load, and of each block what claims are about."""
    found: dict[str, Any] = {name: median(getattr(block.load, name) for block in blocks) for name in _LOAD_FIGURES}
    towers = {f"{tower}_cpu_ms": median(b.tower_ms[tower] for b in blocks) for tower in blocks[0].tower_ms}
    return {
        **found,
        "state_hit_share": median(block.hit_share for block in blocks),
        "cpu_ms": median(block.cpu_ms for block in blocks),
        **towers,
        "rest_cpu_ms": median(block.rest_ms for block in blocks),
        "requests": sum(block.load.requests for block in blocks),
        "each_per_second": [block.load.per_second for block in blocks],
        "each_cpu_ms": [block.cpu_ms for block in blocks],
        "each_rest_cpu_ms": [block.rest_ms for block in blocks],
    }


def _grown(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {name: value - before.get(name, 0.0) for name, value in after.items()}


def _require_good(result: LoadResult) -> None:
    if result.errors or set(result.statuses) != {200}:
        raise BenchError(f"statuses {result.statuses}, {result.errors} requests without an answer")
    for answer in result.answers:
        if degraded := json.loads(answer.text)["degraded"]:
            raise BenchError(f"degraded answers: {degraded}")
