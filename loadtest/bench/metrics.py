"""`farm bench metrics`: what metrics and logs cost a request, and whether counters are exact, also after kill -9.

The service that is measured for its cost has one core, the load generator another.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from loadtest.bench.metrics_cost import cost, cost_claims
from loadtest.bench.metrics_exact import exact, exact_claims, killed, killed_claims
from loadtest.bench.metrics_sizes import QUICK, Sizes
from loadtest.bench.parts import Part, choose, measure_parts
from loadtest.bench.service_lab import open_lab
from loadtest.bench.untrained import given_or_untrained
from loadtest.process import PATIENT
from model.figures import report

PARTS = {
    "cost": Part(cost, cost_claims),
    "exact": Part(exact, exact_claims),
    "killed": Part(killed, killed_claims),
}


def run(artifact: Path | None, only: str | None, quick: bool) -> dict[str, Any]:
    """All parts, or the one of a name, of one artifact; without one, of an untrained FARM (its speed is the same).

    UnknownPartError when there is no part of that name.
    """
    names = choose(only, PARTS)
    with given_or_untrained(artifact) as path:
        return measure(path, names, QUICK if quick else Sizes())


def measure(artifact: Path, names: list[str], sizes: Sizes) -> dict[str, Any]:
    """The report on some parts."""
    with open_lab(artifact, sizes.users, **PATIENT) as lab:
        results, claims = measure_parts(PARTS, names, lab, sizes)
        cores = asdict(lab.cores)
    return report("metrics", {"artifact": artifact.name, "cores": cores, **asdict(sizes)}, results, claims)
