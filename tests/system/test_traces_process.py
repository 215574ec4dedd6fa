"""A real service and a collector: traces and log lines of requests of all kinds, from two workers, to the last."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from loadtest.otlp_collector import Collector, attributes, collector
from loadtest.process import ServiceFailedError, ServiceProcess, running_service
from service.metrics import STAGES

USER, AUTHORS, ROOM = 7_130_051_907_331, [7_130_051_907_332, 7_130_051_907_333], 7_130_051_907_334
BODY = {"user_id": USER, "candidates": [{"author_id": author, "live_id": ROOM} for author in AUTHORS]}
TOKEN = "farm_aaaa_" + "s" * 43
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
ALL = {"OTEL_TRACES_SAMPLER_ARG": "1", "OTEL_BSP_SCHEDULE_DELAY": "50", "FARM_SLOW_MS": "0.001"}

Traced = tuple[ServiceProcess, Collector]


@pytest.fixture(scope="module")
def traced(artifact: Path, store_url: str) -> Iterator[Traced]:
    with collector() as traces:
        options = {**ALL, "OTEL_EXPORTER_OTLP_ENDPOINT": traces.url, "OTEL_SERVICE_NAME": "ranker-of-the-test"}
        with running_service(artifact, store_url, "--workers", "2", **options) as service:
            yield service, traces


def parent(sampled: bool, trace: str = TRACE) -> dict[str, str]:
    return {"traceparent": f"00-{trace}-{SPAN}-0{int(sampled)}", "tracestate": "other=1"}


def post(service: ServiceProcess, body: object = BODY, **headers: str) -> httpx.Response:
    return httpx.post(f"{service.url}/rank", json=body, headers=headers, timeout=20.0, trust_env=False)


def wait_until(condition: Callable[[], Any], within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def server_of(traces: Collector, answer: httpx.Response) -> Any:
    """The span of an answered request, once it has come with all of its stages."""
    _, trace, span, _ = answer.headers["traceresponse"].split("-")
    wait_until(lambda: [one for one in traces.servers() if one.span_id.hex() == span])
    (found,) = (one for one in traces.servers() if one.span_id.hex() == span)
    assert found.trace_id.hex() == trace
    return found


def written(service: ServiceProcess) -> str:
    """To stderr.  Not by `seek`: the service writes where we would be."""
    return os.pread(service.errors.fileno(), 1 << 24, 0).decode()


def log_lines(service: ServiceProcess) -> list[dict[str, Any]]:
    """All that the service wrote, of which every line is an object."""
    return [json.loads(line) for line in written(service).splitlines()]


def test_a_ranking_is_a_span_of_its_caller_with_a_span_for_each_stage(traced: Traced) -> None:
    service, traces = traced
    answer = post(service, **parent(sampled=True), **{"x-request-id": "mine"})
    assert answer.status_code == 200
    server = server_of(traces, answer)
    assert (server.trace_id.hex(), server.parent_span_id.hex(), server.trace_state) == (TRACE, SPAN, "other=1")
    stages = traces.children(server)
    assert [span.name for span in stages] == list(STAGES)
    times = [(span.start_time_unix_nano, span.end_time_unix_nano) for span in stages]
    assert server.start_time_unix_nano <= times[0][0]
    assert times[-1][1] <= server.end_time_unix_nano
    assert all(start == end for (_, end), (start, _) in pairwise(times))
    found = attributes(server)
    assert (server.name, found["http.route"], found["http.response.status_code"]) == ("POST /rank", "/rank", 200)
    assert (found["farm.candidates"], found["farm.request_id"]) == (2, "mine")
    assert found["farm.model_version"] == answer.json()["model_version"]
    assert found["farm.degraded"] == answer.json()["degraded"]


def test_the_callers_decision_holds(traced: Traced) -> None:
    service, traces = traced
    unsampled = post(service, **parent(sampled=False, trace="e" * 32))
    assert unsampled.headers["traceresponse"].startswith(f"00-{'e' * 32}-")
    assert unsampled.headers["traceresponse"].endswith("-00")
    server_of(traces, post(service))  # what comes later has come
    assert "e" * 32 not in {span.trace_id.hex() for span in traces.spans()}


def test_other_routes_and_refusals_are_spans_too(traced: Traced) -> None:
    service, traces = traced
    with httpx.Client(base_url=service.url, trust_env=False) as client:
        ready = server_of(traces, client.get("/readyz"))
        lost = server_of(traces, client.get(f"/users/{USER}?key={TOKEN}"))
    refused = server_of(traces, post(service, {**BODY, "candidates": []}))
    assert [span.name for span in (ready, lost, refused)] == ["GET /readyz", "GET", "POST /rank"]
    assert [attributes(span)["http.response.status_code"] for span in (ready, lost, refused)] == [200, 404, 422]
    assert [span.name for span in traces.children(refused)] == ["parse"]


def test_both_workers_send_what_they_have(traced: Traced) -> None:
    service, traces = traced
    workers = {worker["pid"] for worker in service.workers()}
    for pid in workers:
        others = workers - {pid}
        for other in others:
            os.kill(other, signal.SIGSTOP)
        try:
            server_of(traces, post(service))
        finally:
            for other in others:
                os.kill(other, signal.SIGCONT)
    assert {found["process.pid"] for found in traces.resources()} == workers
    assert {found["service.name"] for found in traces.resources()} == {"ranker-of-the-test"}


def test_log_lines_name_the_request_and_its_span(traced: Traced) -> None:
    service, _ = traced
    answers: dict[str, httpx.Response] = {}

    def logged() -> list[dict[str, Any]]:
        """Of those asked for here: not every slow request is logged."""
        name = f"in-the-log-{len(answers)}"
        answers[name] = post(service, **parent(sampled=True), **{"x-request-id": name})
        return [line for line in log_lines(service) if line.get("request_id") in answers]

    wait_until(logged)
    line = logged()[0]
    traced_as = answers[line["request_id"]].headers["traceresponse"]
    assert traced_as == f"00-{line['trace_id']}-{line['span_id']}-01"
    assert (line["message"], line["level"], line["role"]) == ("slow request", "warning", "worker")
    assert line["pid"] in {worker["pid"] for worker in service.workers()}
    assert (line["route"], line["status"], line["candidates"]) == ("/rank", 200, 2)
    assert list(line["stages_ms"]) == list(STAGES)
    assert sum(line["stages_ms"].values()) <= line["ms"] + 0.01


def test_neither_traces_nor_logs_tell_for_whom(traced: Traced) -> None:
    """Runs after the others, on all that they left."""
    service, traces = traced
    sent = post(service, **parent(sampled=True), authorization=f"Bearer {TOKEN}")
    server_of(traces, sent)
    told = written(service) + "".join(map(str, traces.requests))
    assert not [secret for secret in (USER, *AUTHORS, ROOM, TOKEN, TOKEN[10:]) if str(secret) in told]


def test_what_is_left_is_sent_at_the_stop(artifact: Path, store_url: str) -> None:
    options = {**ALL, "OTEL_BSP_SCHEDULE_DELAY": "600000"}
    with (
        collector() as traces,
        running_service(artifact, store_url, **options, OTEL_EXPORTER_OTLP_ENDPOINT=traces.url) as service,
    ):
        answers = [post(service) for _ in range(3)]
        assert traces.spans() == []
        assert service.stop() == 0
        spans = {span.span_id.hex() for span in traces.servers()}
    assert {answer.headers["traceresponse"].split("-")[2] for answer in answers} == spans


def test_a_collector_that_is_down_is_harmless(artifact: Path, store_url: str) -> None:
    """Its complaints are few, and a stop does not wait for it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        down = f"http://127.0.0.1:{taken.getsockname()[1]}"
    options = {**ALL, "OTEL_EXPORTER_OTLP_ENDPOINT": down, "FARM_SLOW_MS": "0"}
    with running_service(artifact, store_url, **options) as service:
        assert {post(service).status_code for _ in range(100)} == {200}
        wait_until(lambda: log_lines(service))
        start = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - start < 10
        lines = log_lines(service)
    assert 1 <= len(lines) <= 5
    assert {line["logger"].split(".")[0] for line in lines} == {"opentelemetry"}


def test_wrong_settings_keep_it_from_starting(artifact: Path, store_url: str) -> None:
    for wrong in ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4317"}, {"FARM_LOG_FORMAT": "xml"}):
        with pytest.raises(ServiceFailedError) as failed, running_service(artifact, store_url, **wrong):
            pass
        assert failed.value.errors.startswith("farm serve: ")
        assert next(iter(wrong)) in failed.value.errors
        assert len(failed.value.errors.splitlines()) == 1
