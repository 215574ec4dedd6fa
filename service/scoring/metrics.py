"""Metrics of batches and of the state cache.  Observed once for each run of the engine."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import Counter, Gauge, Histogram

from feature_store.metered import metered
from model.artifact.engine import BatchCost

_POWERS = tuple(2**n for n in range(11))  # 1 .. 1,024

_tiles = Histogram("farm_batch_tiles", "Tiles of K candidates of a batch.", buckets=_POWERS)
_requests = Histogram("farm_batch_requests", "Requests of a batch.", buckets=_POWERS[:8])
_padding = Histogram(
    "farm_batch_padding_ratio",
    "Share of a batch's places that hold no candidate.",
    buckets=(0, 0.02, 0.05, 0.1, 0.2, 0.4),
)
_failures = Counter("farm_batch_failures_total", "Batches that failed: halved and tried again, or refused.", ["result"])
_lookups = Counter("farm_state_cache_requests_total", "Requests by whether the user's state was kept.", ["result"])
_bytes = Gauge("farm_state_cache_bytes", "User states that are kept.", multiprocess_mode="livesum")
_age = Histogram(
    "farm_state_cache_age_seconds",
    "How long a state had been kept when it was used.",
    buckets=(0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300),
)
_executors = Gauge(
    "farm_executors", "Threads, or event loops, that run batches of one model.", multiprocess_mode="livesum"
)
_busy = Counter("farm_executor_busy_seconds_total", "Time in which executors ran batches.")
_cpu = Counter("farm_tower_cpu_seconds_total", "CPU seconds of the towers.", ["tower"])
# named from the start, so that rates see 0
_hit, _miss = _lookups.labels("hit"), _lookups.labels("miss")
_halved, _refused = _failures.labels("halved"), _failures.labels("refused")
_user_cpu, _candidate_cpu = _cpu.labels("user"), _cpu.labels("candidate")


@metered
def observe_run(cost: BatchCost, tiles: int, requests: int) -> None:
    """A run of the engine.  tiles: of the policy's size, whatever size the engine chose."""
    _tiles.observe(tiles)
    _requests.observe(requests)
    _padding.observe(1 - cost.candidates / cost.places)
    _user_cpu.inc(cost.user_tower_cpu_s)
    _candidate_cpu.inc(cost.candidate_tower_cpu_s)


@metered
def observe_states(ages_s: Sequence[float], misses: int) -> None:
    """Requests of a batch.  ages_s: of the kept states that were used."""
    if ages_s:
        _hit.inc(len(ages_s))
        for age in ages_s:
            _age.observe(age)
    if misses:
        _miss.inc(misses)


@metered
def keep_more(kept_bytes: int) -> None:
    """Of one model's states; the gauge is of all that are loaded."""
    _bytes.inc(kept_bytes)


@metered
def count_failure(requests: int) -> None:
    """A batch of so many requests failed."""
    (_halved if requests > 1 else _refused).inc()


@metered
def show_executors(count: int) -> None:
    """Of one model; those of another that is kept beside it share the same cores."""
    _executors.set(count)


@metered
def count_busy(seconds: float) -> None:
    """An executor ran a batch."""
    _busy.inc(seconds)
