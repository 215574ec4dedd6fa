"""How far the shadow model is from what was answered."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import Counter, Histogram

from feature_store.metered import metered

_DIFFERENCES = (1e-6, 1e-5, 1e-4, 1e-3, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)

_requests = Counter("farm_shadow_requests_total", "Requests that were drawn for the shadow model.", ["result"])
_mean = Histogram(
    "farm_shadow_mean_difference",
    "Of a request: mean absolute difference of a task's probabilities.",
    ["task"],
    buckets=_DIFFERENCES,
)
_greatest = Histogram(
    "farm_shadow_max_difference",
    "Of a request: greatest absolute difference of a task's probabilities.",
    ["task"],
    buckets=_DIFFERENCES,
)
_overlap = Histogram(
    "farm_shadow_top10_overlap_ratio",
    "Of a request: share of the first ten that both models have.",
    buckets=(0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1),
)
_scored, _dropped, _failed = (_requests.labels(result) for result in ("scored", "dropped", "failed"))


@metered
def observe_divergence(mean: Mapping[str, float], greatest: Mapping[str, float], overlap: float) -> None:
    """mean, greatest: by task."""
    _scored.inc()
    _overlap.observe(overlap)
    for task, difference in mean.items():
        _mean.labels(task).observe(difference)
        _greatest.labels(task).observe(greatest[task])


@metered
def count_dropped() -> None:
    _dropped.inc()


@metered
def count_failed() -> None:
    _failed.inc()
