"""What a connection may send, and how slowly: a real server on a free port, raw bytes from sockets."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import uvicorn
from prometheus_client import REGISTRY
from starlette.types import Receive, Scope, Send

from service.doors.guard import Guard
from service.doors.limits import Limits
from service.doors.protocol import GuardedProtocol

_FAST = Limits(idle_s=30.0, head_s=0.4, body_s=0.4, answer_s=0.4, leave_s=0.5, patience_s=0.1)
_POST = b"POST /echo HTTP/1.1\r\nHost: x\r\n"


class Echo:
    """Answers with the body that it read; GET /wait when it is let go, GET /big with a lot, POST /early unread."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.left = threading.Event()  # a client was gone before its body was complete

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/wait":
            while not self.go.is_set():
                await asyncio.sleep(0.005)
        body = b"x" * 30_000_000 if scope["path"] == "/big" else b"early"
        if scope["path"] == "/echo":
            body, more = b"", True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    self.left.set()
                    return
                body, more = body + message["body"], message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})


class Served:
    """A running server over an Echo."""

    def __init__(self, limits: Limits) -> None:
        self.app, self.guard = Echo(), Guard(limits)
        protocol = partial(GuardedProtocol, self.guard)
        config = uvicorn.Config(self.app, lifespan="off", log_level="critical", ws="none", http=protocol)  # type: ignore[arg-type]
        self.server = uvicorn.Server(config)
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1000)
        self.thread = threading.Thread(target=self.server.run, args=([self.listener],), daemon=True)

    def client(self, sent: bytes = b"") -> Client:
        client = Client(self.listener.getsockname())
        client.send(sent)
        return client


class Client:
    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, 10.0)
        self.file = self.socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the next one."""
        status = int(self.file.readline().split()[1])
        lines = iter(self.file.readline, b"\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.decode().partition(":") for line in lines)}
        return status, headers, self.file.read(int(headers["content-length"]))

    def problem(self) -> tuple[int, str]:
        """Status and type of a problem after which the connection is closed."""
        status, headers, body = self.answer()
        told = json.loads(body)
        assert headers["content-type"] == "application/problem+json"
        assert (headers["connection"], headers["x-request-id"]) == ("close", told["request_id"])
        assert told["status"] == status
        assert self.file.read() == b""
        return status, told["type"].removeprefix("urn:farm:problem:")

    def closed(self) -> bool:
        """Without a word."""
        try:
            return self.file.read(1) == b""
        except ConnectionResetError:
            return True

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.socket.close()


@contextmanager
def serving(limits: Limits = _FAST) -> Iterator[Served]:
    served = Served(limits)
    served.thread.start()
    wait_until(lambda: served.server.started)
    try:
        yield served
    finally:
        served.app.go.set()
        served.server.should_exit = True
        served.thread.join(10.0)


def wait_until(done: object, within_s: float = 10.0) -> None:
    end = time.monotonic() + within_s
    while not done():  # type: ignore[operator]
        assert time.monotonic() < end, "not in time"
        time.sleep(0.005)


def post(body: bytes, path: bytes = b"/echo") -> bytes:
    return b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (path, len(body), body)


def refused(reason: str) -> float:
    return REGISTRY.get_sample_value("farm_connections_refused_total", {"reason": reason}) or 0.0


@pytest.fixture
def served() -> Iterator[Served]:
    with serving() as running:
        yield running


def test_requests_pass_whole_in_pieces_and_pipelined(served: Served) -> None:
    with served.client(post(b"one")) as client:
        assert client.answer()[2] == b"one"
        for byte in post(b"two"):
            client.send(bytes([byte]))
        assert client.answer()[2] == b"two"
        client.send(post(b"a" * 40_000) + post(b"b") + post(b"c")[:30])
        assert [client.answer()[2] for _ in range(2)] == [b"a" * 40_000, b"b"]
        client.send(post(b"c")[30:])
        assert client.answer()[2] == b"c"


def test_a_wish_for_another_protocol_is_ignored(served: Served) -> None:
    """As Java's client has it: the body is read, and the connection kept."""
    wish = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk\r\n"
    with served.client() as client:
        for body in (b"one", b"two"):
            client.send(_POST + wish + b"Content-Length: 3\r\n\r\n" + body)
            assert client.answer()[2] == body
        client.send(post(b"three"))
        assert client.answer()[2] == b"three"
        client.send(b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n")
        assert client.problem() == (400, "malformed-request")


def test_wishes_for_another_protocol_may_be_pipelined(served: Served) -> None:
    """Thousands in one piece: each is answered, in time that grows as their number."""
    wish = b"GET /early HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    number = 3_000
    with served.client() as client:
        sending = threading.Thread(target=client.send, args=(wish * number + post(b"last"),))
        sending.start()
        for _ in range(number):
            assert client.answer()[2] == b"early"
        assert client.answer()[2] == b"last"
        sending.join()


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\nUpgrade: h2c\r\n",
        b"HTTP/1.0\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n",
    ],
    ids=["close", "1.0"],
)
def test_a_wish_for_another_protocol_changes_nothing_else(served: Served, head: bytes) -> None:
    """The connection is closed when it was asked for, or is a thing of HTTP/1.0."""
    with served.client(b"GET /early " + head + b"\r\n") as client:
        assert client.answer()[2] == b"early"
        assert client.closed()


@pytest.mark.parametrize("target", [b"http://x:99999/early", b"http://x", b"/\xff"])
def test_a_target_that_is_no_path_is_a_400(served: Served, target: bytes) -> None:
    before = refused("malformed-request")
    with served.client(b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n") as client:
        assert client.problem() == (400, "malformed-request")
    assert refused("malformed-request") == before + 1


def test_a_wrong_target_takes_nothing_from_the_request_before_it(served: Served) -> None:
    wait = b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n"
    before = refused("malformed-request")
    with served.client(wait + b"GET http://x:99999/ HTTP/1.1\r\nHost: x\r\n\r\n") as client:
        time.sleep(0.1)
        served.app.go.set()
        assert client.answer()[0] == 200
        assert client.closed()
    assert refused("malformed-request") == before + 1


def test_an_idle_connection_is_kept_and_then_closed() -> None:
    limits = Limits(idle_s=1.0, head_s=0.1, body_s=0.1)
    with serving(limits) as served, served.client() as silent, served.client(post(b"1")) as client:
        client.answer()
        began = time.monotonic()
        assert silent.closed()
        assert client.closed()
        assert time.monotonic() - began > 0.4


def test_a_slow_head_is_a_408_though_each_byte_comes_in_time(served: Served) -> None:
    before = refused("slow-request")
    with served.client(_POST) as client:
        client.socket.setblocking(False)
        while not readable(client):
            client.send(b"X")
            time.sleep(0.05)
        client.socket.settimeout(10.0)
        assert client.problem() == (408, "slow-request")
    assert refused("slow-request") == before + 1


def test_a_slow_body_is_a_408_and_its_application_is_told(served: Served) -> None:
    with served.client(post(b"12345")[:-1]) as client:
        assert client.problem() == (408, "slow-request")
    assert served.app.left.wait(10.0)


def test_a_slow_service_is_not_the_fault_of_the_client(served: Served) -> None:
    """A pipelined head that began while the answer before it was made, and a body that was not read then."""
    wait = b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n"
    with served.client(wait + post(b"12")[:20]) as head, served.client(wait + post(b"12345")[:-1]) as body:
        time.sleep(1.2)
        served.app.go.set()
        assert (head.answer()[2], body.answer()[2]) == (b"early", b"early")
        head.send(post(b"12")[20:])
        body.send(b"5")
        assert (head.answer()[2], body.answer()[2]) == (b"12", b"12345")


@pytest.mark.parametrize(
    ("sent", "problem"),
    [
        (b"GET /" + b"a" * 4_096 + b" HTTP/1.1\r\n", (414, "target-too-long")),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 16_384 + b"\r\n\r\n", (431, "headers-too-large")),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 600_000, (431, "headers-too-large")),
        (b"GET / HTTP/1.1\r\n" + b"X: 1\r\n" * 65 + b"\r\n", (431, "headers-too-large")),
        (b"GET / HTTP/1.1\r\n" + b"X: 1\r\n" * 40_000 + b"\r\n", (431, "headers-too-large")),
        (b"\x16\x03\x01\x02\x00\x01\x00", (400, "malformed-request")),
        (b"GET / HTTP/1.1\r\nbad header: 1\r\n\r\n", (400, "malformed-request")),
        (_POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", (400, "malformed-request")),
        (_POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", (400, "malformed-request")),
        (_POST + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n", (400, "malformed-request")),
    ],
)
def test_what_is_too_much_or_not_http_is_a_problem(served: Served, sent: bytes, problem: tuple[int, str]) -> None:
    before = refused(problem[1])
    with served.client(sent) as client:
        assert client.problem() == problem
    assert refused(problem[1]) == before + 1


def test_what_is_at_the_limits_passes(served: Served) -> None:
    names = b"".join(b"X: 1\r\n" for _ in range(62))
    size = 16_384 - 62 * 2 - len("host" + "x" + "x")
    head = b"GET /" + b"a" * 4_095 + b" HTTP/1.1\r\nHost: x\r\n" + names + b"X: " + b"a" * size + b"\r\n\r\n"
    with served.client(head) as client:
        assert client.answer()[0] == 200
        for start in range(0, len(head), 1_500):  # in pieces likewise
            client.send(head[start : start + 1_500])
        assert client.answer()[0] == 200


def test_the_answers_before_a_malformed_request_are_sent_first(served: Served) -> None:
    with served.client(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\nnonsense\r\n\r\n") as client:
        time.sleep(0.05)
        served.app.go.set()
        assert client.answer()[2] == b"early"
        assert client.closed()


@pytest.mark.parametrize(
    ("framing", "part"),
    [(b"Content-Length: 4000000", b"x" * 2_000_000), (b"Transfer-Encoding: chunked", b"4\r\nabcd\r\n")],
)
def test_an_answer_without_the_body_reaches_a_client_that_still_sends(
    served: Served, framing: bytes, part: bytes
) -> None:
    with served.client(b"POST /early HTTP/1.1\r\nHost: x\r\n" + framing + b"\r\n\r\n") as client:
        client.send(part)
        _, headers, body = client.answer()
        assert (body, headers["connection"]) == (b"early", "close")
        assert client.closed()


def test_a_body_that_is_not_too_long_is_read_on_for_the_sake_of_the_connection(served: Served) -> None:
    with served.client(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n") as client:
        _, headers, body = client.answer()
        assert body == b"early"
        assert "connection" not in headers
        client.send(b"x" * 1_000_000 + post(b"5"))
        assert client.answer()[2] == b"5"


def test_a_head_is_as_long_in_pieces(served: Served) -> None:
    head = b"GET / HTTP/1.1\r\n" + b"".join(b"X: " + b"a" * 4_000 + b"\r\n" for _ in range(5))
    for cut in (len(head), 10):
        with served.client(head[:cut]) as client:
            time.sleep(0.05)
            client.send(head[cut:] + b"\r\n")
            assert client.problem() == (431, "headers-too-large")


def test_a_client_that_does_not_read_its_answer_is_dropped(served: Served) -> None:
    with served.client(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n") as client:
        wait_until(lambda: served.guard.answers.since)
        wait_until(lambda: not served.server.server_state.connections)
        assert len(client.file.readline()) > 0


def test_a_new_connection_takes_the_place_of_the_longest_idle() -> None:
    with serving(Limits(connections=3)) as served:
        first, second, third = clients = [served.client(post(b"1")) for _ in range(3)]
        for client in clients:
            client.answer()
        first.send(post(b"2"))
        first.answer()  # so the second is the longest idle
        fourth = served.client(post(b"4"))
        assert fourth.answer()[2] == b"4"
        assert second.closed()
        for client in (first, third, fourth):
            client.send(post(b"5"))
            assert client.answer()[2] == b"5"


def test_those_stuck_in_a_head_go_before_the_idle() -> None:
    with serving(Limits(connections=3, patience_s=0.1)) as served:
        idle = served.client(post(b"1"))
        idle.answer()
        stuck = served.client(_POST)
        other = served.client(_POST)
        wait_until(lambda: len(served.guard.heads.since) == 2)
        time.sleep(0.15)
        assert served.client(post(b"2")).answer()[2] == b"2"
        assert stuck.closed()
        idle.send(post(b"3"))
        assert idle.answer()[2] == b"3"
        other.send(b"Content-Length: 1\r\n\r\n4")
        assert other.answer()[2] == b"4"


def test_when_all_are_at_work_a_new_connection_is_a_503() -> None:
    before = refused("too-many-connections")
    with serving(Limits(connections=2)) as served:
        busy = [served.client(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n") for _ in range(2)]
        wait_until(lambda: len(served.server.server_state.tasks) == 2)
        with served.client() as late:
            assert late.problem() == (503, "too-many-connections")
        served.app.go.set()
        assert [client.answer()[2] for client in busy] == [b"early", b"early"]
        assert served.client(post(b"1")).answer()[2] == b"1"
    assert refused("too-many-connections") == before + 1


def test_500_slow_clients_do_not_keep_others_from_answers() -> None:
    with serving(Limits(connections=300, head_s=5.0, patience_s=0.1)) as served:
        honest = served.client(post(b"0"))
        honest.answer()
        slow = [served.client(_POST if number % 2 else b"") for number in range(250)]
        time.sleep(0.2)
        slow += [served.client(_POST if number % 2 else b"") for number in range(250)]
        for number in range(20):
            body = b"%d" % number
            honest.send(post(body))
            assert honest.answer()[2] == body
            with served.client(post(body)) as new:
                assert new.answer()[2] == body
        assert len(served.server.server_state.connections) <= 300 + 64
        for client in slow:
            client.socket.close()


def readable(client: Client) -> bool:
    try:
        return bool(client.socket.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False
