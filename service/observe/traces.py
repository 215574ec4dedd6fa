"""Spans of sampled requests, to an OpenTelemetry collector.  Imported only where traces are switched on.

They are made when the answer has been sent, with the times that were taken meanwhile, so that no answer waits for them.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Mapping

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)
from opentelemetry.util.types import AttributeValue

from service.observe.sampling import Sampling
from service.observe.trail import Trail
from service.observe.w3c import SpanId, tracestate_of
from service.release import package_version

OTHER_ROUTE = "other"
"""Paths that the service does not have: they are not told, because strangers choose them."""

_METHODS = {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"}
_BATCH = 128  # spans: to encode more at a time would keep the event loop from its work for milliseconds
_FAULT = 500  # status, from which on a request failed for no fault of its own
_SAY_AGAIN_S = 60.0
_TALKATIVE = (
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.sdk._shared_internal",
    "opentelemetry.sdk.trace.export",
)


class OtlpTracer:
    """Sends spans from a thread, some at a time; those that find its queue full are lost."""

    def __init__(self, sampling: Sampling) -> None:
        """Where to and how, OpenTelemetry's environment variables say.  ValueError when they are wrong."""
        self.sampling = sampling
        self._ids = _ChosenIds()
        self._exporter = OTLPSpanExporter()
        self._processor = BatchSpanProcessor(self._exporter, max_export_batch_size=_batch_size(os.environ))
        provider = TracerProvider(ALWAYS_ON, _resource(), shutdown_on_exit=False, id_generator=self._ids)
        provider.add_span_processor(self._processor)
        self._tracer = provider.get_tracer("farm", package_version())
        self._seldom = {name: _Seldom() for name in _TALKATIVE}
        for name, seldom in self._seldom.items():
            logging.getLogger(name).addFilter(seldom)

    def take(self, trail: Trail, method: str, route: str, status: int, ended: float) -> None:
        """A request that was answered.  ended: of time.perf_counter"""
        assert trail.span is not None
        ahead_s = time.time() - time.perf_counter()
        self._ids.next = trail.span
        known = method if method in _METHODS else "HTTP"
        span = self._tracer.start_span(
            known if route == OTHER_ROUTE else f"{known} {route}",
            _context(trail),
            SpanKind.SERVER,
            _attributes(trail, method, route, status),
            start_time=_ns(trail.started + ahead_s),
        )
        if trail.watch is not None:
            self._add_stages(span, [(name, a + ahead_s, b + ahead_s) for name, a, b in trail.watch.stages(ended)])
        if status >= _FAULT:
            span.set_status(Status(StatusCode.ERROR))
        span.end(_ns(ended + ahead_s))

    def close(self, within_s: float) -> None:
        """Send what is left, but do not wait for a collector that does not answer."""
        flushing = threading.Thread(target=self._processor.force_flush, daemon=True)
        flushing.start()
        flushing.join(within_s)
        for name, seldom in self._seldom.items():
            logging.getLogger(name).removeFilter(seldom)
        self._exporter.shutdown()  # type: ignore[no-untyped-call]  # the SDK has not typed it

    def _add_stages(self, server: Span, stages: list[tuple[str, float, float]]) -> None:
        inside = set_span_in_context(server, Context())
        for name, start, end in stages:
            self._tracer.start_span(name, inside, start_time=_ns(start)).end(_ns(end))


class _ChosenIds(IdGenerator):
    """A server span has the ids that the answer and log lines name."""

    next: SpanId | None = None

    def generate_trace_id(self) -> int:
        assert self.next is not None
        return int(self.next.trace_id, 16)

    def generate_span_id(self) -> int:
        chosen, self.next = self.next, None
        return random.getrandbits(64) or 1 if chosen is None else int(chosen.span_id, 16)


class _Seldom(logging.Filter):
    """The same complaint once a minute, however long a collector is down."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        again = self._said.get(str(record.msg), float("-inf")) + _SAY_AGAIN_S
        if record.created < again:
            return False
        self._said[str(record.msg)] = record.created
        return True


def _batch_size(environment: Mapping[str, str]) -> int | None:
    """None: the environment says it; else no more than the queue that it gives."""
    if "OTEL_BSP_MAX_EXPORT_BATCH_SIZE" in environment:
        return None
    queue = environment.get("OTEL_BSP_MAX_QUEUE_SIZE", "")
    return min(_BATCH, int(queue)) if queue.isdecimal() else _BATCH


def _resource() -> Resource:
    """Of this process; what the environment says has precedence."""
    name, version = {"service.name": "farm-ranker"}, {"service.version": package_version()}
    return Resource({**name, **version, "process.pid": os.getpid()}).merge(OTELResourceDetector().detect())


def _context(trail: Trail) -> Context:
    """With the caller's span, if there is one."""
    parent = trail.parent
    if parent is None:
        return Context()
    remote = SpanContext(
        int(parent.trace_id, 16),
        int(parent.span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(TraceFlags.SAMPLED if parent.sampled else TraceFlags.DEFAULT),
        trace_state=TraceState.from_header([tracestate_of(trail.headers)]),
    )
    return set_span_in_context(NonRecordingSpan(remote), Context())


def _attributes(trail: Trail, method: str, route: str, status: int) -> dict[str, AttributeValue]:
    """OpenTelemetry's names for HTTP servers, and ours."""
    found: dict[str, AttributeValue] = {
        "http.request.method": method if method in _METHODS else "_OTHER",
        "http.response.status_code": status,
        "url.scheme": "http",
        "farm.request_id": trail.request_id,
    }
    if route != OTHER_ROUTE:
        found |= {"http.route": route, "url.path": route}
    if status >= _FAULT:
        found["error.type"] = str(status)
    if trail.watch is not None:
        found |= {f"farm.{name}": value for name, value in trail.watch.facts().items()}
    return found


def _ns(seconds: float) -> int:
    return int(1e9 * seconds)
