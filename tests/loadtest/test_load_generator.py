"""The load generator against a plain server: it sends what it says, and its figures are those of its answers."""

from __future__ import annotations

import json
import socketserver
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from loadtest.load.figures import Latencies, LoadResult
from loadtest.load.loops import arrivals
from loadtest.load.run import Load, LoadError, run_load
from loadtest.load.traffic import rank_bodies

USERS, AUTHORS = np.arange(1000, 2000), np.arange(50_000, 53_000)


class Handler(BaseHTTPRequestHandler):
    """Answers a body with itself; a body with "status" with that, one with "cut" not at all."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet
    got: ClassVar[list[dict[str, Any]]] = []
    connections: ClassVar[set[int]] = set()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        asked = json.loads(body)
        own = [self.headers.get(name) for name in ("X-Priority", "X-Deadline-Ms")]
        self.got.append({**asked, "path": self.path, "type": self.headers["Content-Type"], "headers": own})
        self.connections.add(self.client_address[1])
        if asked.get("cut"):
            self.close_connection = True
            return
        self.send_response(asked.get("status", 200))
        self._send_body(body, asked)

    def _send_body(self, body: bytes, asked: dict[str, Any]) -> None:
        if asked.get("chunked"):
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
            return
        if asked.get("close"):
            self.send_header("Connection", "close")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 64

    def handle_error(self, *_: object) -> None:  # the generator leaves without a word
        pass


@contextmanager
def serving() -> Iterator[str]:
    Handler.got.clear()
    Handler.connections.clear()
    socketserver.TCPServer.allow_reuse_address = True
    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/rank?x=1"
        finally:
            server.shutdown()


def write(path: Path, bodies: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(body) + "\n" for body in bodies))
    return path


def send(bodies: Path, **options: Any) -> LoadResult:
    with serving() as url:
        return run_load(Load(url, bodies, **{"clients": 3, "seconds": 0.3, "warm_up_s": 0.1, **options}))


def test_a_closed_loop_sends_the_bodies_in_order_on_kept_connections(tmp_path: Path) -> None:
    bodies = [{"number": number, "candidates": [1] * (1 + number % 2)} for number in range(7)]
    result = send(write(tmp_path / "bodies", bodies), clients=1, first=3, by_candidates=True, keep_every=5)
    numbers = [asked["number"] for asked in Handler.got]
    assert numbers == [(3 + place) % 7 for place in range(len(numbers))]
    assert (Handler.got[0]["path"], Handler.got[0]["type"]) == ("/rank?x=1", "application/json")
    assert len(Handler.connections) == 1
    assert result.answered == len(numbers)
    assert result.statuses == {200: result.requests}
    assert result.errors == 0
    assert [found.requests for found in result.by_candidates.values()] == pytest.approx(
        [result.requests / 2] * 2, rel=0.3
    )
    assert sum(found.requests for found in result.by_candidates.values()) == result.requests
    assert [json.loads(answer.text) for answer in result.answers] == [bodies[answer.body] for answer in result.answers]
    kept = len(result.answers)
    assert result.requests // 5 <= kept <= result.requests // 5 + 1


def test_every_client_has_a_connection(tmp_path: Path) -> None:
    result = send(write(tmp_path / "bodies", [{}]), clients=5)
    assert len(Handler.connections) == 5
    assert 0 < result.p50_ms <= result.p95_ms <= result.p99_ms <= result.p999_ms <= result.max_ms
    assert result.per_second == pytest.approx(result.requests / 0.3, abs=2 * 5 / 0.3)  # those under way at both ends
    assert 0 < result.generator_cpu_share <= 1.1
    assert result.generator_cpu_us > 0


def test_statuses_are_counted_and_only_2xx_has_a_latency(tmp_path: Path) -> None:
    result = send(write(tmp_path / "bodies", [{}, {"status": 503}, {"status": 404}]), clients=1)
    assert set(result.statuses) == {200, 404, 503}
    assert result.requests == result.statuses[200]
    assert max(result.statuses.values()) - min(result.statuses.values()) <= 1


def test_a_cut_connection_is_an_error_and_comes_back(tmp_path: Path) -> None:
    result = send(write(tmp_path / "bodies", [{}, {"cut": True}, {}]), clients=2)
    assert result.errors > 0
    assert result.requests > result.errors
    assert result.statuses == {200: result.requests}


@pytest.mark.parametrize("rate", [None, 200.0])
@pytest.mark.parametrize("kind", ["chunked", "close"])
def test_other_servers_frame_their_answers_otherwise(tmp_path: Path, kind: str, rate: float | None) -> None:
    body = {kind: True, "text": "x" * 5000}
    result = send(write(tmp_path / "bodies", [body]), rate=rate, keep_every=1)
    assert result.errors == 0
    assert all(json.loads(answer.text) == body for answer in result.answers)


def test_nothing_good_is_an_error_that_says_what_came(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"no request was answered with 2xx: statuses \{500: \d+\}, 0 without"):
        send(write(tmp_path / "bodies", [{"status": 500}]))
    with pytest.raises(LoadError, match=r"Connect call failed|refused"):
        run_load(Load("http://127.0.0.1:9/rank", write(tmp_path / "bodies", [{}]), clients=1, seconds=0.1))


def test_arrivals_are_of_the_seed_and_poisson() -> None:
    times = arrivals(1000, 20, seed=1)
    assert np.array_equal(times, arrivals(1000, 20, seed=1))
    assert not np.array_equal(times, arrivals(1000, 20, seed=2))
    gaps = np.diff(times)
    assert gaps.min() > 0
    assert times[-1] < 20 < times[-1] + 0.1
    assert gaps.mean() == pytest.approx(0.001, rel=0.05)
    assert gaps.std() == pytest.approx(0.001, rel=0.05)


def test_an_open_loop_sends_as_many_as_its_schedule(tmp_path: Path) -> None:
    bodies = write(tmp_path / "bodies", [{"number": 1}])
    result = send(bodies, rate=300.0, seconds=0.5, warm_up_s=0.1, seed=4, clients=8)
    times = arrivals(300.0, 0.6, seed=4)
    assert result.answered == len(times) == len(Handler.got)
    assert result.requests == pytest.approx((times >= 0.1).sum(), abs=3)
    assert len(Handler.connections) == 8
    assert result.late_p99_ms >= 0


def test_who_waits_for_a_connection_waits_since_its_time(tmp_path: Path) -> None:
    """One connection, arrivals faster than answers: latencies grow with the queue."""
    result = send(write(tmp_path / "bodies", [{"text": "x" * 200_000}]), rate=3000.0, clients=1, seconds=0.5)
    assert result.requests == pytest.approx(1500, rel=0.2)
    assert result.max_ms > 5 * 1000 / 3000 * 10  # the last had many before it
    assert result.per_second < result.requests / 0.5


def test_percentiles_are_latencies_of_requests() -> None:
    shuffled = np.random.default_rng(0).permutation(np.arange(1.0, 1001))
    found = Latencies.of(shuffled)
    assert (found.p50_ms, found.p95_ms, found.p99_ms, found.p999_ms, found.max_ms) == (500, 950, 990, 999, 1000)
    one = Latencies.of(np.array([7.0]))
    assert {one.p50_ms, one.p95_ms, one.p99_ms, one.p999_ms, one.max_ms} == {7.0}


def test_bodies_are_of_the_seed(tmp_path: Path) -> None:
    def bodies(name: str, seed: int, **options: Any) -> list[dict[str, Any]]:
        path = rank_bodies(tmp_path / name, USERS, AUTHORS, [50, 200], 400, 20, 10**12, seed, **options)
        return [json.loads(line) for line in path.read_text().splitlines()]

    made = bodies("a", 1, step_ms=1000)
    assert made == bodies("b", 1, step_ms=1000)
    assert made != bodies("c", 2, step_ms=1000)
    assert [body["now_ms"] for body in made] == [10**12 + 1000 * number for number in range(400)]
    assert {body["top_k"] for body in made} == {20}
    counts = Counter(len(body["candidates"]) for body in made)
    assert set(counts) == {50, 200}
    assert min(counts.values()) > 150
    assert all(len(set(body["candidates"])) == len(body["candidates"]) for body in made)
    assert all(set(body["candidates"]) <= set(AUTHORS.tolist()) for body in made)
    assert {body["now_ms"] for body in bodies("d", 1)} == {10**12}


def test_users_follow_zipf_or_are_even(tmp_path: Path) -> None:
    def counts(name: str, **options: Any) -> np.ndarray:
        path = rank_bodies(tmp_path / name, USERS, AUTHORS, [1], 10_000, None, None, 3, **options)
        drawn = [json.loads(line) for line in path.read_text().splitlines()]
        assert all("now_ms" not in body for body in drawn)
        return np.sort(np.bincount([body["user_id"] - 1000 for body in drawn], minlength=1000))[::-1]

    zipf = counts("zipf")
    assert 0.11 < zipf[0] / 10_000 < 0.16  # 1 / (1 + 1/2 + ... + 1/1000) = 0.134
    assert 3 < zipf[0] / zipf[4] < 8
    assert counts("even", exponent=0).max() < 35
