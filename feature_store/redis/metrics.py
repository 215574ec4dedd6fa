"""What the author cache knew, in Prometheus' client."""

from __future__ import annotations

from typing import Literal, get_args

from prometheus_client import Counter, Gauge, Histogram

from feature_store.metered import metered

Result = Literal["hit", "absent", "miss"]

_AGES_S = (0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300)

_lookups = Counter(
    "farm_author_cache_lookups_total",
    "Authors looked up: remembered, remembered as absent, or to be fetched.",
    ["result"],
)
_age = Histogram(
    "farm_author_cache_age_seconds",
    "How long a remembered author had been remembered when it was used; sampled.",
    buckets=_AGES_S,
)
_authors = Gauge("farm_author_cache_authors", "Authors that are remembered.", multiprocess_mode="livesum")
_of: dict[Result, Counter] = {result: _lookups.labels(result) for result in get_args(Result)}  # so that rates see 0


@metered
def count_looked_up(hits: int, absent: int, misses: int) -> None:
    """Of the authors of one request."""
    _of["hit"].inc(hits)
    if absent:
        _of["absent"].inc(absent)
    if misses:
        _of["miss"].inc(misses)


@metered
def observe_author_age(seconds: float) -> None:
    """Of a remembered author that was used."""
    _age.observe(seconds)


@metered
def show_authors(count: int) -> None:
    """How many are remembered."""
    _authors.set(count)
