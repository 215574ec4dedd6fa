"""The trace of a load: each request, by what its answer says of itself."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from test_load_generator import Handler, send, serving

from loadtest.load.run import Load, LoadError, loading, run_load
from loadtest.load.trace import NO_ANSWER, Kind, Kinds, Trace, joined

GOOD: dict[str, Any] = {"request_id": "r", "model_version": "m1", "ranking": [1] * 99, "degraded": [], "timing_ms": {}}
STALE = GOOD | {"degraded": ["stale_history", "unknown_authors"], "model_version": "m2", "arm": "split"}
BUSY = {"type": "urn:farm:problem:overloaded", "title": "x", "status": 503}


def write(path: Path, bodies: list[dict[str, Any]]) -> Path:
    path.write_bytes(b"".join(orjson.dumps(body) + b"\n" for body in bodies))
    return path


def test_answers_say_their_model_and_what_they_lack() -> None:
    kinds = Kinds()
    stale = {"request_id": "r", "model_version": "m2", "arm": "split", "ranking": [], "degraded": STALE["degraded"]}
    answers = [(200, GOOD), (200, stale), (503, BUSY), (200, GOOD), (500, {}), (NO_ANSWER, {})]
    assert [kinds.number(status, orjson.dumps(answer)) for status, answer in answers] == [0, 1, 2, 0, 3, 4]
    assert kinds.seen == [
        Kind(200, "m1"),
        Kind(200, "m2", "split", ("stale_history", "unknown_authors")),
        Kind(503, problem="overloaded"),
        Kind(500),
        Kind(NO_ANSWER),
    ]


def test_a_load_tells_of_every_request(tmp_path: Path) -> None:
    bodies = write(tmp_path / "bodies", [GOOD, BUSY, STALE, {"cut": True}])
    before = time.perf_counter()
    result = send(bodies, clients=2, trace=True, keep_every=5)
    trace = result.traced()
    found = {(trace.kinds[kind], body) for kind, body in zip(trace.kind.tolist(), trace.body.tolist(), strict=True)}
    assert {(Kind(200, "m1"), 0), (Kind(503, problem="overloaded"), 1), (Kind(NO_ANSWER), 3)} <= found
    assert trace.statuses().keys() == {NO_ANSWER, 200, 503}
    assert len(trace.only(lambda kind: kind.status != NO_ANSWER)) == result.answered
    assert (before < trace.due).all()
    assert (trace.due <= trace.sent).all()
    assert (trace.sent < trace.done).all()
    assert (trace.done < time.perf_counter()).all()
    assert len(result.answers) < result.requests
    assert {answer.body for answer in result.answers} <= {0, 2}


def test_headers_go_with_every_request_and_nothing_good_is_a_result_too(tmp_path: Path) -> None:
    with serving() as url:
        bodies = write(tmp_path / "bodies", [BUSY])
        load = Load(url, bodies, 1, 0.2, 0.0, headers={"X-Priority": "low", "X-Deadline-Ms": "80"}, trace=True)
        result = run_load(load)
    assert result.traced().statuses().keys() == {503}
    assert np.isnan(result.p99_ms)
    assert len(Handler.got) == len(result.traced())
    assert all(asked["headers"] == ["low", "80"] for asked in Handler.got)


def test_windows_and_joined_traces_keep_kinds() -> None:
    at = np.arange(4.0)
    first = Trace(at, at, at + 0.001, np.arange(4), np.array([0, 0, 1, 1]), (Kind(200), Kind(503)))
    second = Trace(at + 4, at + 4, at + 4.5, np.arange(4), np.array([0, 0, 0, 1]), (Kind(503), Kind(200, "m")))
    both = joined([first, second])
    assert both.kinds == (Kind(200), Kind(503), Kind(200, "m"))
    assert both.statuses() == {200: 3, 503: 5}
    late = both.between(3, 6)
    assert (late.due.tolist(), late.statuses()) == ([3.0, 4.0, 5.0], {503: 3})
    assert late.ms.tolist() == pytest.approx([1, 500, 500])
    assert len(both.only(lambda kind: kind.version == "m")) == 1


def test_a_trace_is_read_as_it_was_written(tmp_path: Path) -> None:
    at = np.arange(3.0)
    trace = Trace(at, at, at + 1, np.arange(3), np.array([1, 0, 1]), (Kind(200, degraded=("a", "b")), Kind()))
    trace.save(tmp_path / "t.npz")
    read = Trace.load(tmp_path / "t.npz")
    assert read.kinds == trace.kinds
    assert read.done.tolist() == trace.done.tolist()
    assert json.dumps(read.statuses()) == '{"0": 2, "200": 1}'


def test_a_load_can_be_stopped(tmp_path: Path) -> None:
    with serving() as url:
        load = Load(url, write(tmp_path / "bodies", [GOOD]), 1, 60.0, 0.0, rate=200.0, trace=True)
        with loading(load) as running:
            running.wait_begun()
            time.sleep(0.3)
            running.stop()
            result = running.result()
    assert 0.2 < result.seconds < 10
    assert result.errors == 0
    assert result.requests == len(result.traced())


def test_a_load_without_a_server_says_so_instead_of_beginning(tmp_path: Path) -> None:
    load = Load("http://127.0.0.1:9/rank", write(tmp_path / "bodies", [GOOD]), 1, 0.1)
    with loading(load) as running, pytest.raises(LoadError, match=r"refused|failed"):
        running.wait_begun()
