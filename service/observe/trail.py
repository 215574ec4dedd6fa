"""What a request leaves behind: an id in log lines, a trace when it is sampled, a log line when it was slow.

A process has one observer, as it has one registry of metrics: `install` gives it what it works with.
"""

from __future__ import annotations

import logging
import os
import random
import re
import time
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

from service.errors import REQUEST_ID_HEADER
from service.observe.sampling import Sampling
from service.observe.slow import SlowRequests
from service.observe.w3c import SpanId, parent_of
from service.stopwatch import Stopwatch

_REQUEST_ID = REQUEST_ID_HEADER.lower().encode()
_SANE_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")  # what may be copied into logs and headers

RawHeaders = Sequence[tuple[bytes, bytes]]

_log = logging.getLogger(__name__)


class Trail:
    """Of one request.  span: ours, while requests are traced, sampled or not."""

    __slots__ = ("headers", "parent", "request_id", "span", "started", "watch")

    def __init__(self, headers: RawHeaders) -> None:
        """headers: names in lower case"""
        self.started = time.perf_counter()
        self.headers = headers
        self.request_id = request_id_of(headers)
        self.parent: SpanId | None = None
        self.span: SpanId | None = None
        self.watch: Stopwatch | None = None  # of a ranking


class Tracer(Protocol):
    """Takes requests that are sampled."""

    sampling: Sampling

    def take(self, trail: Trail, method: str, route: str, status: int, ended: float) -> None:
        """ended: of time.perf_counter"""


@dataclass(frozen=True)
class Observer:
    """What becomes of requests beside their answers."""

    tracer: Tracer | None = None
    slow: SlowRequests | None = None


_observer = Observer()
_current: ContextVar[Trail | None] = ContextVar("trail", default=None)


def install(observer: Observer) -> None:
    """From the next request on."""
    global _observer
    _observer = observer


def begin(headers: RawHeaders) -> Trail:
    """A request has come, which this task answers.  headers: names in lower case"""
    trail = Trail(headers)
    _current.set(trail)
    if _observer.tracer is not None:
        _join(trail, _observer.tracer.sampling)
    return trail


def follow(watch: Stopwatch) -> None:
    """The request of this task is a ranking."""
    trail = _current.get()
    if trail is not None:
        trail.watch = watch


def end(trail: Trail, method: str, route: str, status: int) -> float:
    """The seconds that it took.  Call it when the answer has been sent."""
    now, observer = time.perf_counter(), _observer
    if observer.tracer is not None and trail.span is not None and trail.span.sampled:
        try:
            observer.tracer.take(trail, method, route, status, now)
        except Exception:  # whatever it is: a request is counted, and told when it was slow, without its span too
            _log.exception("a span was lost")
    if observer.slow is not None:
        watch = trail.watch
        seconds = now - (trail.started if watch is None else watch.started)  # a ranking's body is the client's time
        if seconds > observer.slow.slow_s:
            observer.slow.tell(method, route, status, seconds, watch, now)
    return now - trail.started


def log_context() -> dict[str, str]:
    """Which request the running task answers, for its log lines."""
    trail = _current.get()
    if trail is None:
        return {}
    if trail.span is not None:
        return {"request_id": trail.request_id, "trace_id": trail.span.trace_id, "span_id": trail.span.span_id}
    parent = parent_of(trail.headers)
    return {"request_id": trail.request_id, **({} if parent is None else {"trace_id": parent.trace_id})}


def request_id_of(headers: RawHeaders) -> str:
    """The caller's, when it is sane; else a new one."""
    for name, value in headers:
        if name == _REQUEST_ID and _SANE_ID.fullmatch(value):
            return str(value, "ascii")
    return os.urandom(16).hex()


def _join(trail: Trail, sampling: Sampling) -> None:
    """The caller's trace, else a new one."""
    parent = trail.parent = parent_of(trail.headers)
    trace_id = f"{random.getrandbits(128) or 1:032x}" if parent is None else parent.trace_id
    trail.span = SpanId(trace_id, f"{random.getrandbits(64) or 1:016x}", sampling.decide(trace_id, parent))
