"""Metrics of the service, in Prometheus' client.

Each worker keeps its numbers in files of one directory (PROMETHEUS_MULTIPROC_DIR, made and removed by the parent, set
before this module is imported); the parent adds them up, and drops the gauges of workers that have ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

from prometheus_client import (
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)

from feature_store.events.batch import EventBatch

STAGES = ("parse", "store", "queue", "user_tower", "candidate_tower", "hand_over", "formula", "serialise")
DEGRADED = ("stale_history", "no_history", "corrupt_history", "unknown_authors", "stale_authors")
REJECTED = (
    "malformed-body",
    "body-too-large",
    "unsupported-media-type",
    "invalid-request",
    "events-busy",
    "not-durable",
    "store-unavailable",
)

_BUCKETS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0)

disable_created_metrics()  # type: ignore[no-untyped-call]  # a series more for each, which nobody reads

_requests = Counter("farm_http_requests_total", "Answered requests.", ["route", "status"])
_request_seconds = Histogram(
    "farm_http_request_duration_seconds", "From arrival to the last byte of the answer.", ["route"], buckets=_BUCKETS_S
)
_stage_seconds = Histogram(
    "farm_rank_stage_duration_seconds", "Time of a ranking, by stage.", ["stage"], buckets=_BUCKETS_S
)
_degraded = Counter("farm_rank_degraded_total", "Answers that lacked something, by reason.", ["reason"])
_accepted = Counter("farm_events_accepted_total", "Events answered as durable, by type.", ["type"])
_rejected = Counter(
    "farm_events_rejected_total", "Requests with events that were refused, by problem type.", ["reason"]
)
_model = Gauge(
    "farm_model_info", "1 for the model that answers.", ["version", "arch", "provider"], multiprocess_mode="mostrecent"
)
_stages = {stage: _stage_seconds.labels(stage) for stage in STAGES}
_reasons = {reason: _degraded.labels(reason) for reason in DEGRADED}  # named from the start, so that rates see 0
_types = {kind: _accepted.labels(kind) for kind in ("video_view", "live_view", "author", "user")}
_rejections = {reason: _rejected.labels(reason) for reason in REJECTED}


def count_request(route: str, status: int, seconds: float) -> None:
    count, duration = _of_route(route, status)
    count.inc()
    duration.observe(seconds)


def observe_ranking(seconds: Mapping[str, float], degraded: Sequence[str]) -> None:
    """seconds: by stage."""
    for stage, value in seconds.items():
        _stages[stage].observe(value)
    for reason in degraded:
        _reasons[reason].inc()


def count_accepted(batch: EventBatch) -> None:
    counts = {"video_view": batch.video, "live_view": batch.live, "author": batch.authors, "user": batch.users}
    for kind, records in counts.items():
        _types[kind].inc(len(records))


def count_rejected(reason: str) -> None:
    """reason: the type of the problem that was answered."""
    _rejections[reason].inc()


@cache
def _of_route(route: str, status: int) -> tuple[Counter, Histogram]:
    """Kept, because finding a series by its labels takes longer than to count in it."""
    return _requests.labels(route, str(status)), _request_seconds.labels(route)


_named: list[tuple[str, str, str]] = []


def name_model(version: str, arch: str, provider: str) -> None:
    """It answers from now on; what did before is 0."""
    for labels in _named:
        _model.labels(*labels).set(0)
    _named[:] = [(version, arch, provider)]
    _model.labels(version, arch, provider).set(1)
