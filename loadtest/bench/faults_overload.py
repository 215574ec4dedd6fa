"""Of `farm bench faults`: twice as many requests as a core can answer."""

from __future__ import annotations

from typing import Any

from loadtest.bench.faults_answers import wrong_answers
from loadtest.bench.faults_lab import Ground, Watched, p99, service_ms
from loadtest.load.figures import LoadResult
from loadtest.load.trace import Kind
from model.figures import claim

CALM, OVER = 0.7, 2.0  # of saturation
REJECTED_MS = 10.0

_RATIO, _PEAK_SHARE, _GROWTH = 2.0, 0.95, 1.02
_REJECTION = 503
_WARM_UP_S = 1.0


def overload(ground: Ground) -> dict[str, Any]:
    """Latencies of what is accepted, at 70 % and at twice the saturation; rejections; memory."""
    service, bodies, sizes = ground.lab.service("lmdb"), ground.bodies(), ground.sizes
    url, peak = service.process.url, ground.peak(service, "lmdb")
    calm = ground.run(url, bodies, sizes.calm_s, CALM * peak, warm_up_s=_WARM_UP_S)
    with Watched(service.process.process.pid) as watched:
        over = ground.run(url, bodies, sizes.overload_s, OVER * peak, warm_up_s=_WARM_UP_S)
    lines = bodies.path.read_bytes().splitlines()
    return {
        "peak_per_second": peak,
        "calm_p99_ms": calm.p99_ms,
        "calm_statuses": calm.statuses,
        **_figures(over),
        "p99_ratio": over.p99_ms / calm.p99_ms,
        "peak_share": over.per_second / peak,
        "rss_mb": [usage.rss_mb for usage in watched.usages],
        "rss_growth": watched.rss_growth(),
        "wrong_answers": wrong_answers(over, lines)[:3],
    }


def _figures(over: LoadResult) -> dict[str, Any]:
    trace = over.traced()
    rejected = trace.only(_is_rejection)
    ms = service_ms(rejected)
    others = trace.only(lambda kind: kind.status not in (200, _REJECTION, 504))
    return {
        "rate": len(trace) / over.seconds,
        "statuses": over.statuses,
        "problems": sorted({kind.problem for kind in trace.kinds if kind.problem}),
        "per_second": over.per_second,
        "p50_ms": over.p50_ms,
        "p99_ms": over.p99_ms,
        "max_ms": over.max_ms,
        "rejected": len(rejected),
        "rejected_p99_ms": p99(rejected),
        "rejected_max_ms": float(ms.max()) if len(ms) else None,
        "failed": len(others) + over.errors,
        "late_p99_ms": over.late_p99_ms,
        "generator_cpu_share": over.generator_cpu_share,
    }


def _is_rejection(kind: Kind) -> bool:
    return kind.status == _REJECTION


def overload_claims(found: dict[str, Any]) -> list[dict[str, Any]]:
    text = f"{OVER:g} x saturation: "
    return [
        claim(text + f"p99 of accepted / p99 at {CALM:.0%} of saturation", found["p99_ratio"], "<=", _RATIO),
        claim(text + "slowest rejection, ms", found["rejected_max_ms"], "<=", REJECTED_MS),
        claim(text + "accepted per second / peak", found["peak_share"], ">=", _PEAK_SHARE),
        claim(text + "RSS of the last third / of the second", found["rss_growth"], "<=", _GROWTH),
        claim(text + "answers other than 200, 503, 504, or none", found["failed"], "<=", 0),
    ]
