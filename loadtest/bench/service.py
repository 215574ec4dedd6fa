"""`farm bench service`: the service over stores with real users, under load from a process of its own.

The service has one core; the load generator and the server of the Redis store have another.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loadtest.bench.service_cache import cache, cache_claims
from loadtest.bench.service_generator import generator, generator_claims
from loadtest.bench.service_lab import TOP_K, Lab, open_lab
from loadtest.bench.service_linear import linear, linear_claims
from loadtest.bench.service_memory import memory, memory_claims
from loadtest.bench.service_mixed import mixed, mixed_claims
from loadtest.bench.service_open import open_claims, open_loop
from loadtest.bench.service_saturated import saturated, saturated_claims
from loadtest.bench.service_sizes import QUICK, Sizes
from loadtest.bench.service_stores import AUTHORS
from loadtest.bench.service_users import users, users_claims
from loadtest.bench.service_workers import workers, workers_claims
from loadtest.bench.untrained import untrained
from loadtest.process import PATIENT
from model.figures import report


@dataclass(frozen=True)
class Part:
    """What is measured together."""

    measure: Callable[[Lab, Sizes], dict[str, Any]]
    claims: Callable[[dict[str, Any]], list[dict[str, Any]]]


PARTS = {
    "generator": Part(generator, generator_claims),
    "saturated": Part(saturated, saturated_claims),
    "linear": Part(linear, linear_claims),
    "open": Part(open_loop, open_claims),
    "mixed": Part(mixed, mixed_claims),
    "cache": Part(cache, cache_claims),
    "users": Part(users, users_claims),
    "workers": Part(workers, workers_claims),
    "memory": Part(memory, memory_claims),
}
SLOW = ("memory",)  # parts that a quick run leaves out unless they are asked for


class UnknownPartError(ValueError):
    """There is no part of this name."""


def run(artifact: Path | None, only: str | None, quick: bool) -> dict[str, Any]:
    """All parts, or the one of a name, of one artifact; without one, of an untrained FARM (its speed is the same).

    UnknownPartError when there is no part of that name.
    """
    if only is not None and only not in PARTS:
        raise UnknownPartError(f"no part {only!r}; there are {', '.join(PARTS)}")
    names = [only] if only else [name for name in PARTS if not (quick and name in SLOW)]
    with tempfile.TemporaryDirectory() as scratch:
        return measure(artifact or untrained(Path(scratch)), names, QUICK if quick else Sizes())


def measure(artifact: Path, names: list[str], sizes: Sizes) -> dict[str, Any]:
    """The report on some parts."""
    results, claims = {}, []
    with open_lab(artifact, sizes.users, **PATIENT) as lab:
        for name in names:
            start = time.monotonic()
            found = PARTS[name].measure(lab, sizes)
            results[name] = {**found, "took_s": time.monotonic() - start}
            claims += PARTS[name].claims(found)
            print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
        cores = asdict(lab.cores)
    settings = {"artifact": artifact.name, "top_k": TOP_K, "authors": AUTHORS, "cores": cores, **asdict(sizes)}
    return report("service", settings, results, claims)
