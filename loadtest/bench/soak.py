"""`farm bench soak`: whether memory, file descriptors or threads grow under load, reloads and restarts of the store.

Letters: M minutes.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from loadtest.bench.faults_answers import wrong_answers
from loadtest.bench.faults_lab import Ground, Usage, unanswered, usage_of
from loadtest.bench.faults_models import Models, must_activate, two_models
from loadtest.bench.faults_redis import Place, store_place
from loadtest.bench.faults_sizes import QUICK as QUICK_FAULTS
from loadtest.bench.faults_sizes import Sizes as FaultSizes
from loadtest.bench.parts import choose
from loadtest.bench.service_lab import Bodies, Service, open_lab
from loadtest.bench.untrained import given_or_untrained
from model.figures import claim, report

LOAD = 0.6  # of saturation
TROUBLES = ("reloads", "redis")

_GROWTH_MB = 25.0  # per million requests, upper end of the interval
_FEW = 3  # file descriptors or threads that come and go
_WARM_SHARE = 0.2  # of the minutes, in which caches fill and the second model is loaded
_DRAWS = 4_000


@dataclass(frozen=True)
class Sizes:
    """Of a run."""

    minutes: int
    minute_s: float = 60.0


QUICK = Sizes(minutes=6, minute_s=5.0)


@dataclass(frozen=True)
class Minute:
    """At the end of a minute of load, while it still goes on."""

    usage: Usage
    requests: int  # of this minute
    failed: int
    failures: dict[str, int]  # of those that were sent: status and problem
    wrong: int
    p99_ms: float
    degraded: dict[str, int]


def run(artifact: Path | None, minutes: int, only: str | None, quick: bool) -> dict[str, Any]:
    """With all troubles, those of a name, or "none".  UnknownPartError when there is none of that name."""
    troubles = tuple(name for name in choose(only, ("none", *TROUBLES), TROUBLES, "trouble") if name in TROUBLES)
    sizes = QUICK if quick else Sizes(minutes)
    with given_or_untrained(artifact) as path:
        found = soak(path, sizes, troubles, QUICK_FAULTS if quick else FaultSizes())
    return report("soak", {**asdict(sizes), "troubles": troubles, "load": LOAD}, found, soak_claims(found))


def soak(artifact: Path, sizes: Sizes, troubles: Sequence[str], fault_sizes: FaultSizes) -> dict[str, Any]:
    """Minutes of load, each with its troubles."""
    with open_lab(artifact, fault_sizes.users) as lab, ExitStack() as stack:
        ground = Ground(lab, fault_sizes)
        models = two_models(lab, lab.folder / "soak") if "reloads" in troubles else None
        place = stack.enter_context(store_place(ground))
        environment: dict[str, Any] = {"FARM_MODELS": str(models.folder)} if models else {}
        url = f"redis://127.0.0.1:{place.proxy.port}"
        service = stack.enter_context(lab.another(url, **environment))
        rate, bodies = LOAD * ground.peak(service, "redis"), ground.bodies()
        minutes = []
        for number in range(sizes.minutes):
            minutes.append(_minute(ground, service, bodies, rate, sizes, _Trouble(place, models, troubles, number)))
            print(f"minute {number + 1}: {minutes[-1]}", file=sys.stderr, flush=True)
    return {"rate": rate, **figures(minutes)}


@dataclass(frozen=True)
class _Trouble:
    """What is done in a minute."""

    place: Place
    models: Models | None
    names: Sequence[str]
    number: int  # of the minute

    def make(self, service: Service, pause_s: float) -> None:
        time.sleep(pause_s)
        if self.models is not None:
            must_activate(service.process, self.models.versions[(self.number + 1) % 2])
        time.sleep(pause_s)
        if "redis" in self.names:
            self.place.server.restart()


def _minute(ground: Ground, service: Service, bodies: Bodies, rate: float, sizes: Sizes, trouble: _Trouble) -> Minute:
    ends = time.perf_counter() + sizes.minute_s
    with ground.loading(service.process.url, bodies, 3 * sizes.minute_s, rate, seed=trouble.number) as load:
        trouble.make(service, sizes.minute_s / 3)
        time.sleep(max(0.0, ends - time.perf_counter()))
        usage = usage_of(service.process.process.pid)
        load.stop()
        result = load.result()
    bodies.next = (bodies.next + len(result.traced())) % bodies.count
    wrong = wrong_answers(result, bodies.path.read_bytes().splitlines())
    trace = result.traced()
    degraded, failures = Counter[str](), Counter[str]()
    for number in trace.kind.tolist():
        kind = trace.kinds[number]
        degraded.update(kind.degraded)
        failures.update([] if kind.status == 200 else [f"{kind.status} {kind.problem}".rstrip()])
    return Minute(usage, result.answered, unanswered(result), dict(failures), len(wrong), result.p99_ms, dict(degraded))


def figures(minutes: Sequence[Minute]) -> dict[str, Any]:
    """Growth over the minutes after the first fifth."""
    requests = np.cumsum([minute.requests for minute in minutes]) / 1e6  # [M]
    rss = np.array([minute.usage.rss_mb for minute in minutes])  # [M]
    warm = min(max(1, round(_WARM_SHARE * len(minutes))), len(minutes) - 1)
    return {
        "requests": int(sum(minute.requests for minute in minutes)),
        "failed": sum(minute.failed for minute in minutes),
        "failures": dict(sum((Counter(minute.failures) for minute in minutes), Counter[str]())),
        "wrong_answers": sum(minute.wrong for minute in minutes),
        "rss_mb_per_million": growth(requests[warm:], rss[warm:]),
        "fds_growth": _step([minute.usage.fds for minute in minutes[warm:]]),
        "threads_growth": _step([minute.usage.threads for minute in minutes[warm:]]),
        "minutes": [asdict(minute) for minute in minutes],
    }


def growth(requests: np.ndarray, rss_mb: np.ndarray, seed: int = 0) -> dict[str, float] | None:
    """The slope of the least squares line, and its interval of 95 % by a bootstrap of the points; None of few points.

    requests [M] millions, rss_mb [M].
    """
    if len(requests) < 3:
        return None
    rng, slopes = np.random.default_rng(seed), list[float]()
    while len(slopes) < _DRAWS:
        rows = rng.integers(0, len(requests), len(requests))
        if np.ptp(requests[rows]) > 0:
            slopes.append(_slope(requests[rows], rss_mb[rows]))
    low, high = np.percentile(slopes, [2.5, 97.5])
    return {"slope": _slope(requests, rss_mb), "low": float(low), "high": float(high)}


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    centred = x - x.mean()
    return float((centred * (y - y.mean())).sum() / (centred**2).sum())


def _step(counts: Sequence[int]) -> float:
    """By how much the second half has more than the first, medians."""
    half = len(counts) // 2
    return median(counts[half:]) - median(counts[:half]) if half else 0.0


def soak_claims(found: dict[str, Any]) -> list[dict[str, Any]]:
    slope = found["rss_mb_per_million"]
    text = "growth of RSS, MB per million requests, upper end of the 95 % interval"
    return [
        claim(text, slope and slope["high"], "<=", _GROWTH_MB),
        claim("growth of file descriptors", found["fds_growth"], "<=", _FEW),
        claim("growth of threads", found["threads_growth"], "<=", _FEW),
        claim("requests that failed, or were answered wrongly", found["failed"] + found["wrong_answers"], "<=", 0),
    ]
