"""Metrics of the door."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

from feature_store.metered import metered
from service.admission.admission import Admission, Priority, Reason

REASONS: tuple[Reason, ...] = ("deadline", "queue", "key")
PRIORITIES: tuple[Priority, ...] = ("high", "low")

_refused = Counter(
    "farm_admission_refused_total", "Requests refused when they came, by reason.", ["reason", "priority"]
)
_late = Counter("farm_admission_dropped_total", "Requests that had entered and whose deadline came before their turn.")
_queue = Gauge(
    "farm_admission_queue_tiles", "Cost of what is in the queue, in tiles.", ["priority"], multiprocess_mode="livesum"
)
_wait = Gauge(
    "farm_admission_wait_seconds", "Until all that is in the queue should be done.", multiprocess_mode="livemax"
)
_slowdown = Gauge(
    "farm_admission_slowdown_ratio", "What requests take to what their work alone would.", multiprocess_mode="livemax"
)
# named from the start, so that rates see 0
_refusals = {(reason, priority): _refused.labels(reason, priority) for reason in REASONS for priority in PRIORITIES}
_queues = {priority: _queue.labels(priority) for priority in PRIORITIES}


@metered
def count_refused(reason: Reason, priority: Priority) -> None:
    _refusals[reason, priority].inc()


@metered
def count_dropped(requests: int) -> None:
    _late.inc(requests)


@metered
def show_queue(door: Admission) -> None:
    """As it is now."""
    for priority, gauge in _queues.items():
        gauge.set(door.queued(priority))
    _wait.set(door.wait_s())
    _slowdown.set(door.costs.slowdown)
