"""Of `farm bench service`: latencies at shares of what saturates it, by arrivals that do not wait for answers."""

from __future__ import annotations

from functools import partial
from statistics import median
from typing import Any

from loadtest.bench.service_lab import Bodies, Lab, Service, interleave, summary
from loadtest.bench.service_saturated import CANDIDATES, CLIENTS
from loadtest.bench.service_sizes import Sizes
from model.figures import claim

SHARES = (0.5, 0.7, 0.9)  # of saturation
CLAIMED_SHARE = 0.7
CONNECTIONS = 64

_BOUND = 3.0  # times the median


def open_loop(lab: Lab, sizes: Sizes) -> dict[str, Any]:
    """By backend: what saturates it, measured now, and Poisson arrivals at shares of that."""
    bodies = lab.bodies([CANDIDATES], sizes.bodies)
    return {backend: _shares(lab.service(backend), bodies, sizes) for backend in sizes.backends}


def _shares(service: Service, bodies: Bodies, sizes: Sizes) -> dict[str, Any]:
    closed = partial(service.block, bodies, CLIENTS)
    saturation = summary(interleave({0: closed}, sizes.open_rounds, sizes.seconds)[0])["per_second"]
    ways = {
        share: partial(service.block, bodies, CONNECTIONS, rate=share * saturation, seed=round(100 * share))
        for share in SHARES
    }
    blocks = interleave(ways, sizes.open_rounds, sizes.open_seconds)
    figures = {}
    for share in SHARES:
        ratios = [block.load.p99_ms / block.load.p50_ms for block in blocks[share]]
        figures[share] = {**summary(blocks[share]), "p99_over_median": median(ratios), "each_p99_over_median": ratios}
    return {"saturation_per_second": saturation, "shares": figures}


def open_claims(found: dict[str, Any]) -> list[dict[str, Any]]:
    text = f"p99 / median at {CLAIMED_SHARE:.0%} of saturation, {CANDIDATES} candidates"
    return [
        claim(f"{backend}: {text}", found[backend]["shares"][CLAIMED_SHARE]["p99_over_median"], "<=", _BOUND)
        for backend in found
    ]
