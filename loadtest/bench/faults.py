"""`farm bench faults`: what clients see while the store, the load, models and processes go wrong.

Real processes under an open loop of requests from a process of its own, of users by Zipf's law.  Each is traced.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from loadtest.bench.faults_lab import CANDIDATES, Ground
from loadtest.bench.faults_overload import overload, overload_claims
from loadtest.bench.faults_poison import poison, poison_claims
from loadtest.bench.faults_redis import redis, redis_claims
from loadtest.bench.faults_reload import reload, reload_claims
from loadtest.bench.faults_restarts import kill, kill_claims, rolling, rolling_claims
from loadtest.bench.faults_sizes import QUICK, Sizes
from loadtest.bench.faults_slow import slowloris, slowloris_claims
from loadtest.bench.faults_spoilt import refused, refused_claims, rollback, rollback_claims
from loadtest.bench.faults_workers import workers, workers_claims
from loadtest.bench.parts import Part, choose, measure_parts
from loadtest.bench.service_lab import open_lab
from loadtest.bench.untrained import given_or_untrained
from model.figures import report

PARTS = {
    "redis": Part(redis, redis_claims),
    "overload": Part(overload, overload_claims),
    "reload": Part(reload, reload_claims),
    "refused": Part(refused, refused_claims),
    "rollback": Part(rollback, rollback_claims),
    "workers": Part(workers, workers_claims),
    "rolling": Part(rolling, rolling_claims),
    "kill": Part(kill, kill_claims),
    "poison": Part(poison, poison_claims),
    "slowloris": Part(slowloris, slowloris_claims),
}
IN_QUICK = ("redis", "overload", "kill", "poison")  # what fits into a minute


def run(artifact: Path | None, only: str | None, quick: bool) -> dict[str, Any]:
    """All parts, or the one of a name, with one artifact; without one, with an untrained FARM (its speed is the same).

    UnknownPartError when there is no part of that name.
    """
    names = choose(only, PARTS, IN_QUICK if quick else PARTS)
    with given_or_untrained(artifact) as path:
        return measure(path, names, QUICK if quick else Sizes())


def measure(artifact: Path, names: list[str], sizes: Sizes) -> dict[str, Any]:
    """The report on some parts."""
    with open_lab(artifact, sizes.users) as lab:
        results, claims = measure_parts(PARTS, names, Ground(lab, sizes))
        cores = asdict(lab.cores)
    settings = {"artifact": artifact.name, "candidates": CANDIDATES, "cores": cores, **asdict(sizes)}
    return report("faults", settings, results, claims)
