"""Trace context, sampling, spans of requests; the exporter is OpenTelemetry's, the collector a server of the test."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from loadtest.otlp_collector import Collector, attributes, collector
from service.metrics import STAGES
from service.observe import trail as trails
from service.observe.sampling import Sampling, read_sampling
from service.observe.start import observing
from service.observe.traces import OtlpTracer
from service.observe.trail import Observer, Trail
from service.observe.w3c import SpanId, parent_of, read_parent, tracestate_of
from service.observe.wanted import check_traces, traces_wanted
from service.runtime import StartError
from service.scoring.scorer import Score
from service.settings import Settings
from service.stopwatch import Stopwatch

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}


def parent(flags: str = "01", version: str = "00", more: str = "") -> bytes:
    return f"{version}-{TRACE}-{SPAN}-{flags}{more}".encode()


@pytest.mark.parametrize(
    ("value", "sampled"),
    [(parent(), True), (parent("00"), False), (parent("03"), True), (parent("01", "cc", "-later"), True)],
    ids=["sampled", "unsampled", "other flags", "later version"],
)
def test_a_parent_is_read(value: bytes, sampled: bool) -> None:
    assert read_parent(value) == SpanId(TRACE, SPAN, sampled)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        parent()[:-1],
        parent().upper(),
        parent(version="ff"),
        parent(more="-x"),
        parent().replace(TRACE.encode(), b"0" * 32),
        parent().replace(SPAN.encode(), b"0" * 16),
        b"\xff" + parent()[1:],
    ],
    ids=["empty", "short", "upper case", "version ff", "too long", "no trace", "no span", "not ASCII"],
)
def test_a_malformed_parent_is_none(value: bytes) -> None:
    assert read_parent(value) is None


def test_several_parents_are_none_and_several_states_are_joined() -> None:
    assert parent_of([(b"traceparent", parent()), (b"traceparent", parent())]) is None
    assert parent_of([(b"accept", b"*/*"), (b"traceparent", parent())]) == SpanId(TRACE, SPAN, True)
    assert tracestate_of([(b"tracestate", b"a=1"), (b"tracestate", b"b=2")]) == "a=1,b=2"
    assert tracestate_of([(b"tracestate", b"a=" + b"x" * 511)]) == ""


def test_the_header_of_a_span_is_read_back() -> None:
    for sampled in (True, False):
        span = SpanId(TRACE, SPAN, sampled)
        assert read_parent(span.header()) == span


def test_sampling_follows_the_parent_and_else_the_ratio() -> None:
    rng = np.random.default_rng(7)
    traces = [rng.bytes(16).hex() for _ in range(4_000)]
    drawn = [Sampling(0.25).decide(trace, None) for trace in traces]
    assert 0.22 < sum(drawn) / len(drawn) < 0.28
    assert drawn == [Sampling(0.25).decide(trace, None) for trace in traces]
    assert Sampling(0.0).decide(TRACE, SpanId(TRACE, SPAN, True))
    assert not Sampling(1.0).decide(TRACE, SpanId(TRACE, SPAN, False))
    assert Sampling(1.0, heed_parent=False).decide("f" * 32, SpanId(TRACE, SPAN, False))
    assert not Sampling(0.0, heed_parent=False).decide("0" * 31 + "1", SpanId(TRACE, SPAN, True))


@pytest.mark.parametrize(
    ("environment", "sampling"),
    [
        ({}, Sampling(0.01, True)),
        ({"OTEL_TRACES_SAMPLER_ARG": "0.5"}, Sampling(0.5, True)),
        ({"OTEL_TRACES_SAMPLER": "always_on"}, Sampling(1.0, False)),
        ({"OTEL_TRACES_SAMPLER": "parentbased_always_off"}, Sampling(0.0, True)),
        ({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "1"}, Sampling(1.0, False)),
    ],
    ids=["default", "ratio", "on", "parent only", "without parent"],
)
def test_samplers_of_the_environment(environment: dict[str, str], sampling: Sampling) -> None:
    assert read_sampling(environment) == sampling


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"OTEL_TRACES_SAMPLER": "jaeger_remote"}, "OTEL_TRACES_SAMPLER: must be one of always_on"),
        ({"OTEL_TRACES_SAMPLER_ARG": "2"}, "OTEL_TRACES_SAMPLER_ARG: must be a number from 0 to 1, not '2'"),
        ({"OTEL_TRACES_SAMPLER_ARG": "much"}, "OTEL_TRACES_SAMPLER_ARG"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL: must be http/protobuf"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"}, "OTEL_EXPORTER_OTLP_ENDPOINT: must be the URL"),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER: must be otlp or none"),
    ],
    ids=["sampler", "ratio", "no number", "protocol", "endpoint", "exporter"],
)
def test_wrong_settings_are_named(environment: dict[str, str], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        check_traces({**ENDPOINT, **environment})


def test_traces_are_wanted_where_there_is_an_endpoint() -> None:
    assert traces_wanted(ENDPOINT)
    check_traces(ENDPOINT)
    for off in ({}, {**ENDPOINT, "OTEL_SDK_DISABLED": "true"}, {**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}):
        assert not traces_wanted(off)


def in_a_process_without_the_extra(code: str) -> subprocess.CompletedProcess[str]:
    hide = (
        "import sys\n"
        "class Hidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter')):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Hidden())\n"
    )
    command = [sys.executable, "-c", hide + code]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **ENDPOINT}, check=False)


def test_without_the_extra_the_fix_is_named() -> None:
    done = in_a_process_without_the_extra("from service.observe.wanted import check_traces\ncheck_traces()")
    said = done.stderr.splitlines()[-1]
    assert "OTEL_EXPORTER_OTLP_ENDPOINT asks for traces: pip install 'farm-ranker[otel]'" in said


def test_serving_needs_no_extra() -> None:
    done = in_a_process_without_the_extra("import service.app, service.ranking, service.worker, service.observe.start")
    assert done.returncode == 0, done.stderr


def ranking(watch: Stopwatch, until: str) -> None:
    """As service.ranking times one, up to a stage."""
    for stage in STAGES:
        if stage == until:
            return
        if stage in ("parse", "store", "formula", "serialise"):
            watch.lap(stage)
        elif stage == "queue":
            watch.lap_scored(Score(np.zeros((1, 1), np.float32), 0.0, 0.0, 0.0, kept=True))


@pytest.mark.parametrize("stage", ["parse", "store", "queue", "formula", "serialise"])
def test_a_ranking_that_failed_was_long_in_its_last_stage(stage: str) -> None:
    watch = Stopwatch()
    ranking(watch, until=stage)
    until = time.perf_counter() + 1
    name, start, end = watch.stages(until)[-1]
    assert (name, end) == (stage, until)
    assert end - start > 0.9


def test_stages_follow_one_another_in_their_order() -> None:
    watch = Stopwatch()
    ranking(watch, until="")
    stages = watch.stages(time.perf_counter())
    assert [name for name, _, _ in stages] == list(STAGES)
    assert stages[0][1] == watch.started
    assert all(before[2] == after[1] for before, after in pairwise(stages))
    assert watch.facts() == {"state_kept": True}


def traced(tracer: OtlpTracer, headers: Sequence[tuple[bytes, bytes]], status: int = 200) -> Trail:
    """A ranking that was answered with `status`."""
    trails.install(Observer(tracer))
    try:
        trail = trails.begin(headers)
        trails.follow(watch := Stopwatch())
        watch.candidates, watch.degraded = 7, ["no_history"]
        ranking(watch, until="" if status == 200 else "store")
        trails.end(trail, "POST", "/rank", status)
    finally:
        trails.install(Observer())
    return trail


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> Collector:
    with collector() as found:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
        yield found


def test_a_new_trace_begins_where_no_caller_has_one(traces: Collector) -> None:
    tracer = OtlpTracer(Sampling(1.0))
    trail = traced(tracer, [])
    tracer.close(5.0)
    (server,) = traces.servers()
    assert trail.span is not None
    assert (server.trace_id.hex(), server.span_id.hex()) == (trail.span.trace_id, trail.span.span_id)
    assert server.parent_span_id == b""
    assert [span.name for span in traces.children(server)] == list(STAGES)


def test_a_fault_is_an_error_and_its_last_stage_lasts(traces: Collector) -> None:
    tracer = OtlpTracer(Sampling(1.0))
    for status in (504, 422):
        traced(tracer, [], status)
    tracer.close(5.0)
    fault, refused = traces.servers()
    assert (fault.status.code, attributes(fault)["error.type"]) == (Status.STATUS_CODE_ERROR, "504")
    assert (refused.status.code, "error.type" in attributes(refused)) == (Status.STATUS_CODE_UNSET, False)
    assert [span.name for span in traces.children(fault)] == ["parse", "store"]
    assert traces.children(fault)[-1].end_time_unix_nano == fault.end_time_unix_nano


def test_paths_and_methods_of_strangers_are_not_told(traces: Collector) -> None:
    tracer = OtlpTracer(Sampling(1.0))
    trails.install(Observer(tracer))
    try:
        trails.end(trails.begin([]), "BREW", "other", 404)
    finally:
        trails.install(Observer())
    tracer.close(5.0)
    (server,) = traces.servers()
    assert server.name == "HTTP"
    found = attributes(server)
    assert (found["http.request.method"], "url.path" in found, "http.route" in found) == ("_OTHER", False, False)


@pytest.mark.parametrize("batch", [None, "3"], ids=["its own batch", "a given one"])
def test_a_queue_may_be_shorter_than_a_batch(
    traces: Collector, monkeypatch: pytest.MonkeyPatch, batch: str | None
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "20")
    if batch:
        monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", batch)
    tracer = OtlpTracer(Sampling(1.0))
    traced(tracer, [])
    tracer.close(5.0)
    assert len(traces.servers()) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("OTEL_BSP_MAX_QUEUE_SIZE", "0"), ("OTEL_BSP_SCHEDULE_DELAY", "0")],
    ids=["queue", "delay"],
)
def test_what_the_exporter_refuses_is_one_line(
    traces: Collector, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    settings = Settings(artifact=tmp_path, store="lmdb:///store")
    with pytest.raises(StartError, match="traces: the OTEL_"), observing(settings):
        raise AssertionError("it began")


def test_a_collector_that_does_not_answer_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    filters = list(logging.getLogger("opentelemetry.sdk.trace.export").filters)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, never answers
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "256")
        tracer = OtlpTracer(Sampling(1.0))
        start = time.monotonic()
        with caplog.at_level(logging.WARNING):
            for _ in range(500):  # spans of 500 rankings, of which the queue holds 28
                traced(tracer, [])
            tracer.close(0.2)
        assert time.monotonic() - start < 5
    assert logging.getLogger("opentelemetry.sdk.trace.export").filters == filters
    full = [record for record in caplog.records if "Queue full" in record.getMessage()]
    assert len(full) == 1
