"""What a run of the load generator measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from loadtest.load.trace import Trace

_PER_MILLE = {"p50_ms": 500, "p95_ms": 950, "p99_ms": 990, "p999_ms": 999, "max_ms": 1000}


@dataclass(frozen=True, kw_only=True)
class Latencies:
    """Exact percentiles: each is the latency of a request."""

    requests: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float

    @classmethod
    def of(cls, ms: np.ndarray | Sequence[float]) -> Latencies:
        """ms: [requests], at least one."""
        return cls(requests=len(ms), **percentiles(ms))


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One that was kept."""

    body: int  # number of the request's line
    ms: float
    text: str


@dataclass(frozen=True, kw_only=True)
class LoadResult(Latencies):
    """Latencies are of the requests that began after the warm-up and were answered with 2xx."""

    seconds: float  # measured, after the warm-up
    per_second: float  # answers 2xx that came in that time
    statuses: dict[int, int]  # answers by status, after the warm-up
    errors: int  # requests without an answer, after the warm-up
    answered: int  # answers of any status, warm-up and end included: for CPU per request
    generator_cpu_share: float  # of one core; near 1 the generator is what was measured
    generator_cpu_us: float  # per answer
    late_p99_ms: float  # of an arrival of the open loop behind its time; counted in its latency.  0 in a closed loop
    by_candidates: dict[int, Latencies] = field(default_factory=dict)  # when asked for
    answers: list[Answer] = field(default_factory=list)  # when asked for
    trace: Trace | None = None  # when asked for; of all requests, those of the warm-up too

    def traced(self) -> Trace:
        """The trace of a load that was asked for it."""
        assert self.trace is not None, "Load.trace was not set"
        return self.trace

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> LoadResult:
        """The reverse of dataclasses.asdict and JSON."""
        rebuilt = {
            "statuses": {int(status): count for status, count in values["statuses"].items()},
            "by_candidates": {int(n): Latencies(**found) for n, found in values["by_candidates"].items()},
            "answers": [Answer(**answer) for answer in values["answers"]],
        }
        return cls(**{**values, **rebuilt})


def percentiles(ms: np.ndarray | Sequence[float]) -> dict[str, float]:
    """By field name of Latencies: the least latency that so many requests did not exceed; NaN of none."""
    if len(ms) == 0:
        return dict.fromkeys(_PER_MILLE, float("nan"))
    ascending = np.sort(ms)
    return {name: float(ascending[-(-len(ms) * share // 1000) - 1]) for name, share in _PER_MILLE.items()}
