"""What became of events, in Prometheus' client."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics

from feature_store.metered import metered
from feature_store.store import Applied

_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

disable_created_metrics()  # type: ignore[no-untyped-call]  # a series more for each, which nobody reads

_applied = Counter("farm_events_applied_total", "Events merged into the store.")
_dropped = Counter("farm_events_dropped_total", "Events that were not merged, by reason.", ["reason"])
_visible = Histogram(
    "farm_event_visible_seconds",
    "From when events were accepted until a ranking can see them; one for each entry of the log.",
    buckets=_BUCKETS_S,
)
_lag = Gauge(
    "farm_event_lag_entries",
    "Entries of the log that are not merged yet.",
    ["partition"],
    multiprocess_mode="mostrecent",
)
_reasons = {reason: _dropped.labels(reason) for reason in ("erased", "dead_letter")}  # so that rates see 0


@metered
def count_applied(applied: Applied, accepted_ms: Sequence[int]) -> None:
    """accepted_ms: of each entry of the log [ms since 1970], by the clock of who accepted it; 0 is not known."""
    _applied.inc(applied.events)
    _reasons["erased"].inc(applied.dropped)
    now_ms = 1000 * time.time()
    for accepted in accepted_ms:
        if accepted:
            _visible.observe(max(0.0, now_ms - accepted) / 1000)


@metered
def count_dead(events: int) -> None:
    _reasons["dead_letter"].inc(events)


@metered
def set_lag(entries: Mapping[int, int]) -> None:
    """entries: by partition."""
    for partition, count in entries.items():
        _lag.labels(str(partition)).set(count)
