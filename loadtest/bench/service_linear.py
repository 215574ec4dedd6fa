"""Of `farm bench service`: what a request costs, as a line over its candidates."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from loadtest.bench.service_lab import Lab, interleave, summary
from loadtest.bench.service_sizes import Sizes
from model.figures import claim

_FIXED_BOUND_MS = 0.9
_R2_BOUND = 0.99


def linear(lab: Lab, sizes: Sizes) -> dict[str, Any]:
    """CPU and median latency by the number of candidates, one request after another, and the lines fitted to them."""
    requests = {count: lab.bodies([count], min(sizes.bodies, 100 * sizes.bodies // count)) for count in sizes.counts}
    found: dict[str, Any] = {}
    for backend in sizes.backends:
        ways = {count: partial(lab.service(backend).block, bodies, 1) for count, bodies in requests.items()}
        blocks = interleave(ways, sizes.linear_rounds, sizes.linear_seconds)
        figures = {count: summary(blocks[count]) for count in sizes.counts}
        lines = {name: fit(sizes.counts, [figures[n][name] for n in sizes.counts]) for name in ("cpu_ms", "p50_ms")}
        found[backend] = {"counts": figures, "fit": lines}
    return found


def fit(counts: Sequence[int], ms: Sequence[float]) -> dict[str, Any]:
    """ms = a + b n by least squares, the residuals, and the share of the variance that the line explains (r2)."""
    b, a = np.polyfit(counts, ms, 1)
    residuals = np.asarray(ms) - (a + b * np.asarray(counts))
    r2 = 1 - residuals.var() / np.var(ms)
    return {"a_ms": float(a), "b_us": float(1000 * b), "r2": float(r2), "residuals_ms": residuals.tolist()}


def linear_claims(found: dict[str, Any]) -> list[dict[str, Any]]:
    claims = []
    for backend in found:
        line = found[backend]["fit"]["cpu_ms"]
        text = f"{backend}: CPU of a request, ms = {line['a_ms']:.3f} + {line['b_us'] / 1000:.5f} n"
        claims.append(claim(f"{text}: a", line["a_ms"], "<=", _FIXED_BOUND_MS))
        claims.append(claim(f"{text}: r2", line["r2"], ">=", _R2_BOUND))
    return claims
