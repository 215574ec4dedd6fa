"""Of `farm bench service`: what a second worker costs."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

from loadtest.bench.service_lab import Lab, interleave, summary
from loadtest.bench.service_saturated import CANDIDATES
from loadtest.bench.service_sizes import Sizes
from loadtest.bench.service_stores import Backend
from model.figures import claim

CLIENTS = 16

_BOUND = 0.9
_BACKEND: Backend = "lmdb"  # no server shares the cores with the workers


def workers(lab: Lab, sizes: Sizes) -> dict[str, Any]:
    """One and two workers, each free to use both cores; the load generator shares one of them."""
    bodies = lab.bodies([CANDIDATES], sizes.bodies)
    both = {lab.cores.service, lab.cores.others}
    with ExitStack() as stack:
        ways = {}
        for count in (1, 2):
            made = lab.another(lab.store(_BACKEND), "--workers", str(count), cpus=both)
            ways[count] = partial(stack.enter_context(made).block, bodies, CLIENTS)
        blocks = interleave(ways, sizes.rounds, sizes.seconds)
    figures = {count: summary(blocks[count]) for count in ways}
    # requests per second of CPU are the reverse of CPU per request
    return {"workers": figures, "ratio": figures[1]["cpu_ms"] / figures[2]["cpu_ms"]}


def workers_claims(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [claim("requests per second of CPU, two workers / one", found["ratio"], ">=", _BOUND)]
