"""`farm bench metrics`: what metrics and logs cost a request, and whether counters are exact, also after kill -9.

The service that is measured for its cost has one core, the load generator another.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loadtest.bench.metrics_cost import cost, cost_claims
from loadtest.bench.metrics_exact import exact, exact_claims, killed, killed_claims
from loadtest.bench.metrics_sizes import QUICK, Sizes
from loadtest.bench.service_lab import Lab, open_lab
from loadtest.bench.untrained import untrained
from loadtest.process import PATIENT
from model.figures import report


@dataclass(frozen=True)
class Part:
    """What is measured together."""

    measure: Callable[[Lab, Sizes], dict[str, Any]]
    claims: Callable[[dict[str, Any]], list[dict[str, Any]]]


PARTS = {
    "cost": Part(cost, cost_claims),
    "exact": Part(exact, exact_claims),
    "killed": Part(killed, killed_claims),
}


class UnknownPartError(ValueError):
    """There is no part of this name."""


def run(artifact: Path | None, only: str | None, quick: bool) -> dict[str, Any]:
    """All parts, or the one of a name, of one artifact; without one, of an untrained FARM (its speed is the same).

    UnknownPartError when there is no part of that name.
    """
    if only is not None and only not in PARTS:
        raise UnknownPartError(f"no part {only!r}; there are {', '.join(PARTS)}")
    names = [only] if only else list(PARTS)
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
    return report("metrics", {"artifact": artifact.name, "cores": cores, **asdict(sizes)}, results, claims)
