"""Metrics of the service, in Prometheus' client.

Each worker keeps its numbers in files of one directory (PROMETHEUS_MULTIPROC_DIR, made and removed by the parent, set
before this module is imported); the parent adds them up, and drops the gauges of workers that have ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

from prometheus_client import (
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)

from feature_store.events.batch import EventBatch
from feature_store.metered import metered
from feature_store.reading.settings import WORDS

if TYPE_CHECKING:
    from service.lifecycle.serving import Serving

STAGES = ("parse", "store", "queue", "user_tower", "candidate_tower", "hand_over", "formula", "serialise")
REJECTED = (
    "malformed-body",
    "body-too-large",
    "unsupported-media-type",
    "invalid-request",
    "events-busy",
    "not-durable",
    "store-unavailable",
)

_CANDIDATES = (1, 10, 20, 50, 100, 200, 500, 1000, 2000)
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
_candidates = Histogram("farm_rank_candidates", "Candidates of a ranking.", buckets=_CANDIDATES)
_unknown = Counter("farm_rank_unknown_candidates_total", "Candidates whose author the store does not know.")
_accepted = Counter("farm_events_accepted_total", "Events answered as durable, by type.", ["type"])
_rejected = Counter(
    "farm_events_rejected_total", "Requests with events that were refused, by problem type.", ["reason"]
)
_model = Gauge(
    "farm_model_info",
    "1 for the models that answer, 0 for those that did before.",
    ["version", "arch", "provider", "precision", "arm"],
    multiprocess_mode="mostrecent",
)
_stages = {stage: _stage_seconds.labels(stage) for stage in STAGES}
# named from the start, so that rates see 0
_reasons: dict[str, Counter] = {reason: _degraded.labels(reason) for reason in WORDS}
_types = {kind: _accepted.labels(kind) for kind in ("video_view", "live_view", "author", "user")}
_rejections = {reason: _rejected.labels(reason) for reason in REJECTED}


@metered
def count_answer(route: str, status: int) -> None:
    """Before the first byte of it is sent: so what a client has got is counted, though this process is killed."""
    _of_status(route, status).inc()


@metered
def observe_request(route: str, seconds: float) -> None:
    """When it is over."""
    _of_route(route).observe(seconds)


@metered
def observe_ranking(seconds: Mapping[str, float], candidates: int, unknown: int, degraded: Sequence[str]) -> None:
    """seconds: by stage;  unknown: of the candidates."""
    for stage, value in seconds.items():
        _stages[stage].observe(value)
    _candidates.observe(candidates)
    if unknown:
        _unknown.inc(unknown)
    for reason in degraded:
        _reasons[reason].inc()


@metered
def count_accepted(batch: EventBatch) -> None:
    counts = {"video_view": batch.video, "live_view": batch.live, "author": batch.authors, "user": batch.users}
    for kind, records in counts.items():
        _types[kind].inc(len(records))


@metered
def count_rejected(reason: str) -> None:
    """reason: the type of the problem that was answered."""
    _rejections[reason].inc()


@cache  # because finding a series by its labels takes longer than to count in it
def _of_status(route: str, status: int) -> Counter:
    return _requests.labels(route, str(status))


@cache
def _of_route(route: str) -> Histogram:
    return _request_seconds.labels(route)


_named: list[Gauge] = []


@metered
def name_models(serving: Sequence[Serving]) -> None:
    """They answer from now on; what did before is 0."""
    for gauge in _named:
        gauge.set(0)
    _named.clear()
    for one in serving:
        model = one.model
        gauge = _model.labels(model.version, model.manifest.arch, model.provider, model.manifest.precision, one.arm)
        gauge.set(1)
        _named.append(gauge)
