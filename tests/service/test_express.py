"""Rankings past ASGI are counted once each, under the status that the client saw: a real server, raw sockets."""

from __future__ import annotations

import asyncio
import http.client
import threading
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest
import uvicorn
from prometheus_client import REGISTRY

from service.doors.limits import Limits
from service.errors import PROBLEM_JSON, OverloadedError, problem_json
from service.express import express

PATH = "/rank-of-this-test"
WAIT_S = 10.0


class Ranking:
    """What `post` does next."""

    def __init__(self) -> None:
        self.answer: Any = b"{}"
        self.arrived = threading.Event()

    async def post(self, scope: Any, receive: Any, request_id: str) -> bytes:
        self.arrived.set()
        if self.answer is None:
            await asyncio.Event().wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return cast(bytes, self.answer)

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("a ranking reached the application")


class Server(uvicorn.Server):
    def __init__(self, ranking: Ranking) -> None:
        http_class = cast(Any, express(Limits(), PATH, ranking.post))
        super().__init__(uvicorn.Config(ranking.app, port=0, lifespan="off", log_level="critical", http=http_class))
        self.ranking = ranking

    @property
    def port(self) -> int:
        return cast(int, self.servers[0].sockets[0].getsockname()[1])


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server(Ranking())
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    _until(lambda: server.started)
    yield server
    server.should_exit = server.force_exit = True
    thread.join(WAIT_S)


@pytest.fixture
def ranking(server: Server) -> Ranking:
    server.ranking.arrived.clear()
    return server.ranking


def _until(holds: Any) -> None:
    ends = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.002)


def counted() -> dict[str, float]:
    """Requests by status, and "observed": those whose time was."""
    families = {family.name: family.samples for family in REGISTRY.collect()}
    told = {
        sample.labels["status"]: sample.value
        for sample in families["farm_http_requests"]
        if sample.labels["route"] == PATH
    }
    told["observed"] = sum(
        sample.value
        for sample in families["farm_http_request_duration_seconds"]
        if sample.name.endswith("_count") and sample.labels["route"] == PATH
    )
    return told


def added(before: dict[str, float]) -> dict[str, float]:
    """Since `before`, as soon as one more was observed."""
    _until(lambda: counted()["observed"] > before["observed"])
    return {name: more for name, value in counted().items() if (more := value - before.get(name, 0.0))}


def ask(server: Server) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WAIT_S)
    connection.request("POST", PATH, b"{}")
    return connection


@pytest.mark.parametrize(("answer", "status"), [(b"{}", 200), (ValueError("no"), 500), (OverloadedError("no"), 503)])
def test_an_answer_is_counted_under_its_status(server: Server, ranking: Ranking, answer: Any, status: int) -> None:
    ranking.answer, before = answer, counted()
    connection = ask(server)
    assert connection.getresponse().status == status
    connection.close()
    assert added(before) == {str(status): 1, "observed": 1}


def test_a_refusal_is_whole_and_the_connection_goes_on(server: Server, ranking: Ranking) -> None:
    ranking.answer = OverloadedError("later", retry_after_s=2.5)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WAIT_S)
    for request_id in ("first", "second"):
        connection.request("POST", PATH, b"{}", {"X-Request-Id": request_id})
        refused = connection.getresponse()
        assert refused.read() == problem_json(ranking.answer, request_id)
        told = {name.lower(): value for name, value in refused.getheaders()}
        assert (told["content-type"], told["retry-after"], told["x-request-id"]) == (PROBLEM_JSON, "3", request_id)
        assert "connection" not in told
    connection.close()


def test_a_client_that_left_is_counted_as_such(server: Server, ranking: Ranking) -> None:
    ranking.answer, before = None, counted()
    connection = ask(server)
    assert ranking.arrived.wait(WAIT_S)
    connection.close()
    assert added(before) == {"499": 1, "observed": 1}


def test_an_answer_that_cannot_be_written_is_counted_once(server: Server, ranking: Ranking) -> None:
    ranking.answer, before = object(), counted()  # has no length
    connection = ask(server)
    assert added(before) == {"200": 1, "observed": 1}
    connection.close()
