"""`farm bench service`: the service over stores with real users, under load from a process of its own.

The service has one core; the load generator and the server of the Redis store have another.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from loadtest.bench.parts import Part, choose, measure_parts
from loadtest.bench.service_cache import cache, cache_claims
from loadtest.bench.service_generator import generator, generator_claims
from loadtest.bench.service_hand_over import hand_over, hand_over_claims
from loadtest.bench.service_lab import TOP_K, open_lab
from loadtest.bench.service_linear import linear, linear_claims
from loadtest.bench.service_memory import memory, memory_claims
from loadtest.bench.service_mixed import mixed, mixed_claims
from loadtest.bench.service_open import open_claims, open_loop
from loadtest.bench.service_saturated import saturated, saturated_claims
from loadtest.bench.service_sizes import QUICK, Sizes
from loadtest.bench.service_stores import AUTHORS
from loadtest.bench.service_users import users, users_claims
from loadtest.bench.service_workers import workers, workers_claims
from loadtest.bench.untrained import given_or_untrained
from loadtest.process import PATIENT
from model.figures import report

PARTS = {
    "generator": Part(generator, generator_claims),
    "saturated": Part(saturated, saturated_claims),
    "linear": Part(linear, linear_claims),
    "open": Part(open_loop, open_claims),
    "mixed": Part(mixed, mixed_claims),
    "cache": Part(cache, cache_claims),
    "users": Part(users, users_claims),
    "workers": Part(workers, workers_claims),
    "hand-over": Part(hand_over, hand_over_claims),
    "memory": Part(memory, memory_claims),
}
SLOW = ("memory",)  # parts that a quick run leaves out unless they are asked for


def run(artifact: Path | None, only: str | None, quick: bool) -> dict[str, Any]:
    """All parts, or the one of a name, of one artifact; without one, of an untrained FARM (its speed is the same).

    UnknownPartError when there is no part of that name.
    """
    names = choose(only, PARTS, [name for name in PARTS if not (quick and name in SLOW)])
    with given_or_untrained(artifact) as path:
        return measure(path, names, QUICK if quick else Sizes())


def measure(artifact: Path, names: list[str], sizes: Sizes) -> dict[str, Any]:
    """The report on some parts."""
    with open_lab(artifact, sizes.users, **PATIENT) as lab:
        results, claims = measure_parts(PARTS, names, lab, sizes)
        cores = asdict(lab.cores)
    settings = {"artifact": artifact.name, "top_k": TOP_K, "authors": AUTHORS, "cores": cores, **asdict(sizes)}
    return report("service", settings, results, claims)
