"""Of `farm bench metrics`: CPU of a request with metrics and logs, and without."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

from loadtest.bench.memory import cpu_seconds
from loadtest.bench.metrics_sizes import Sizes
from loadtest.bench.service_lab import BenchError, Bodies, Lab, Service
from loadtest.load.run import Load, run_load
from model.figures import claim

OFF: dict[str, Any] = {"FARM_METRICS": "false", "FARM_SLOW_MS": "0"}
"""Environment of a service that counts nothing and has no log of slow requests."""

MOST = 0.03  # of a request's CPU

_WARM_UP_S = 0.3  # of a block


@dataclass(frozen=True)
class _Pair:
    """CPU of a request in two blocks, one after the other."""

    on_ms: float  # with metrics and logs
    off_ms: float

    @property
    def share(self) -> float:
        return self.on_ms / self.off_ms - 1


def cost(lab: Lab, sizes: Sizes) -> dict[str, Any]:
    """Two services over one store on one core, in turn: of each pair of blocks, how much more CPU a request takes."""
    bodies, store = lab.bodies([sizes.candidates], sizes.bodies), lab.store("lmdb")
    pairs: dict[int, list[_Pair]] = {clients: [] for clients in sizes.clients}
    for _ in range(sizes.starts):
        with lab.another(store) as on, lab.another(store, **OFF) as off:
            _require_switched(on, off)
            for clients, found in pairs.items():
                found += _pairs(on, off, bodies, clients, sizes)
    return {f"clients_{clients}": _summary(clients, found) for clients, found in pairs.items()}


def cost_claims(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        claim(f"CPU of metrics and logs / of a request without them ({name})", one["share"], "<=", MOST)
        for name, one in found.items()
        if name.startswith("clients_")
    ]


def _pairs(on: Service, off: Service, bodies: Bodies, clients: int, sizes: Sizes) -> list[_Pair]:
    """Each in the other order than the last; an uncounted one first, which fills caches."""
    found = []
    for number in range(-1, sizes.rounds):
        services = (on, off) if number % 2 == 0 else (off, on)
        cpu_ms = {service is on: _cpu_ms(service, bodies, clients, sizes.seconds) for service in services}
        if number >= 0:
            found.append(_Pair(cpu_ms[True], cpu_ms[False]))
    return found


def _summary(clients: int, pairs: list[_Pair]) -> dict[str, Any]:
    low, middle, high = quantiles([pair.share for pair in pairs], n=4, method="inclusive")
    return {
        "clients": clients,
        "on_cpu_ms": median(pair.on_ms for pair in pairs),
        "off_cpu_ms": median(pair.off_ms for pair in pairs),
        "share": middle,
        "share_quartiles": [low, high],
        "us_per_request": 1000 * median(pair.on_ms - pair.off_ms for pair in pairs),
        "each_on_cpu_ms": [pair.on_ms for pair in pairs],
        "each_off_cpu_ms": [pair.off_ms for pair in pairs],
    }


def _cpu_ms(service: Service, bodies: Bodies, clients: int, seconds: float) -> float:
    """CPU of the worker, per answer.  BenchError when not all are rankings."""
    url, pids = f"{service.process.url}/rank", service.pids()
    load = Load(url, bodies.path, clients, seconds, _WARM_UP_S, first=bodies.next)
    cpu_s = cpu_seconds(pids)
    result = run_load(load, service.cores.others)
    cpu_s = cpu_seconds(pids) - cpu_s
    bodies.next = (bodies.next + result.answered) % bodies.count
    if result.errors or set(result.statuses) != {200}:
        raise BenchError(f"statuses {result.statuses}, {result.errors} requests without an answer")
    return 1000 * cpu_s / result.answered


def _require_switched(on: Service, off: Service) -> None:
    """BenchError when the two do not differ in what they count."""
    name = "farm_tower_cpu_seconds_total"
    on.metric(name)
    try:
        off.metric(name)
    except BenchError:
        return
    raise BenchError("the service without metrics has metrics")
