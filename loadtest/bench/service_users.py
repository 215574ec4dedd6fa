"""Of `farm bench service`: the cost of a request does not depend on how many users are stored."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

from loadtest.bench.service_lab import Lab, interleave, summary
from loadtest.bench.service_saturated import CANDIDATES, CLIENTS
from loadtest.bench.service_sizes import Sizes
from loadtest.bench.service_stores import Backend, filled_store
from model.figures import claim

_BOUND = 1.1  # times the CPU with few users


def users(lab: Lab, sizes: Sizes) -> dict[str, Any]:
    """By backend and number of stored users, who ask evenly, so that all of a store is read."""
    return {backend: _compare(lab, backend, sizes) for backend in sizes.backends}


def _compare(lab: Lab, backend: Backend, sizes: Sizes) -> dict[str, Any]:
    ways = {}
    with ExitStack() as stack:
        for stored in (sizes.few_users, sizes.many_users):
            folder = lab.folder / f"{backend}-{stored}"
            url = stack.enter_context(filled_store(backend, stored, folder, {lab.cores.others}))
            bodies = lab.bodies([CANDIDATES], sizes.bodies, exponent=0, users=stored)
            ways[stored] = partial(stack.enter_context(lab.another(url)).block, bodies, CLIENTS)
        blocks = interleave(ways, sizes.rounds, sizes.seconds)
    figures = {stored: summary(blocks[stored]) for stored in ways}
    ratio = figures[sizes.many_users]["cpu_ms"] / figures[sizes.few_users]["cpu_ms"]
    return {"stored": figures, "ratio": ratio}


def users_claims(found: dict[str, Any]) -> list[dict[str, Any]]:
    claims = []
    for backend in found:
        few, many = found[backend]["stored"]
        text = f"{backend}: CPU of a request with {many:,} users stored / with {few:,}"
        claims.append(claim(text, found[backend]["ratio"], "<=", _BOUND))
    return claims
