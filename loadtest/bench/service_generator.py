"""Of `farm bench service`: what the load generator itself can do, and costs."""

from __future__ import annotations

import subprocess
import sys
from statistics import median
from typing import Any

from loadtest.bench.cores import pinned
from loadtest.bench.service_lab import Lab
from loadtest.bench.service_saturated import CANDIDATES, CLIENTS
from loadtest.bench.service_sizes import Sizes
from loadtest.load.run import Load, run_load


def generator(lab: Lab, sizes: Sizes) -> dict[str, Any]:
    """Against a server that answers everything at once with the same bytes."""
    bodies = lab.bodies([CANDIDATES], sizes.bodies // 10)
    with pinned({lab.cores.service}):
        server = subprocess.Popen([sys.executable, "-m", "loadtest.load.trivial"], stdout=subprocess.PIPE, text=True)
    with server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        loads = [
            run_load(Load(url, bodies.path, CLIENTS, sizes.seconds, seed=number), lab.cores.others)
            for number in range(sizes.rounds)
        ]
        server.terminate()
    names = ("per_second", "p50_ms", "p99_ms", "generator_cpu_us", "generator_cpu_share")
    return {name: median(getattr(load, name) for load in loads) for name in names}


def generator_claims(found: dict[str, Any]) -> list[dict[str, Any]]:
    """It makes no claim: what it did for the service is in every other part."""
    return []
