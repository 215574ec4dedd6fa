"""Both clients against a server that misbehaves, by the same tests."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import orjson
import pytest
from misbehaving import (
    RANKING,
    Act,
    begins_late,
    dribbles,
    dribbles_its_head,
    hangs_up,
    misbehaving,
    ranks,
    resets,
    says,
    says_nothing,
    together,
)

from loadtest.redis_servers import wait_until
from service.client import AsyncRankClient, BusyError, DeadlineError, Exchange, NoAnswerError, RankClient, RankError

Ask = Callable[..., Any]
ABSENT = "http://127.0.0.1:9"


def _blocking(url: str, call: Callable[[Any], Any], **options: Any) -> Any:
    with RankClient(url, **options) as client:
        return call(client)


def _asyncio(url: str, call: Callable[[Any], Any], **options: Any) -> Any:
    async def ask() -> Any:
        async with AsyncRankClient(url, **options) as client:
            return await call(client)

    return asyncio.run(ask())


@pytest.fixture(params=[_blocking, _asyncio], ids=["blocking", "asyncio"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """A call of one of the clients, which is made for it."""
    return request.param


def rank(client: Any) -> Any:
    return client.rank(1, [2])


@pytest.mark.parametrize(
    "first",
    [says(503, retry_after="0"), says(429, retry_after="0"), resets, hangs_up],
    ids=["503", "429", "reset", "half a body"],
)
def test_repeated(ask: Ask, first: Act) -> None:
    told: list[Exchange] = []
    with misbehaving(first, ranks) as server:
        answer = ask(server.url, rank, on_exchange=told.append)
    assert answer.ranking[0].xtr == {"ctr": 0.25}
    assert server.routes == ["/rank", "/rank"]
    assert server.bodies[0] == server.bodies[1] == b'{"user_id":1,"candidates":[2]}'
    assert server.headers[0]["x-request-id"] == server.headers[1]["x-request-id"] == told[0].request_id
    assert [(exchange.tries, exchange.method, exchange.route) for exchange in told] == [
        (1, "POST", "/rank"),
        (2, "POST", "/rank"),
    ]
    assert (told[0].status is None) == (told[0].error is not None) == (first in (resets, hangs_up))
    assert (told[1].status, told[1].bytes) == (200, len(orjson.dumps(RANKING)))


@pytest.mark.parametrize(
    ("act", "kind"),
    [(says(503, retry_after="0"), BusyError), (resets, NoAnswerError), (says(422), RankError)],
    ids=["503", "reset", "422"],
)
def test_without_retries_each_try_is_told(ask: Ask, act: Act, kind: type[RankError]) -> None:
    with misbehaving(act) as server, pytest.raises(kind) as failed:
        ask(server.url, rank, retries=0)
    assert len(server.routes) == failed.value.tries == 1
    assert failed.value.request_id == server.headers[0]["x-request-id"]
    assert str(failed.value).startswith(f"{server.url}: ")
    assert failed.value.request_id in str(failed.value)


@pytest.mark.parametrize("act", [says_nothing, dribbles], ids=["silent", "dribbling"])
def test_the_deadline_is_the_calls(ask: Ask, act: Act) -> None:
    with misbehaving(act) as server, pytest.raises(DeadlineError, match="no answer within 200 ms") as late:
        ask(server.url, lambda client: client.rank(1, [2], deadline_ms=200))
    assert (late.value.status, len(server.routes)) == (None, 1)
    assert 0 < int(server.headers[0]["x-deadline-ms"]) <= 200


@pytest.mark.parametrize("act", [begins_late, dribbles_its_head], ids=["late body", "dribbled head"])
def test_no_part_of_an_answer_begins_the_deadline_anew(ask: Ask, act: Act) -> None:
    told: list[Exchange] = []
    with misbehaving(act) as server, pytest.raises(DeadlineError, match="no answer within 1000 ms"):
        ask(server.url, lambda client: client.rank(1, [2], deadline_ms=1000), on_exchange=told.append)
    assert len(told) == 1
    assert 0.9 < told[0].seconds < 1.7


def test_a_request_that_nobody_reads_ends_in_time(ask: Ask) -> None:
    """Of 30 MB, which no socket takes at once; the port takes connections and reads nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(DeadlineError, match="no answer within 500 ms"):
            ask(url, lambda client: client.rank(1, list(range(4_000_000)), deadline_ms=500), retries=0)
        assert time.monotonic() - began < 10


def test_the_timeout_is_the_deadline_of_a_call_without(ask: Ask) -> None:
    with misbehaving(says_nothing) as server, pytest.raises(DeadlineError, match="no answer within 100 ms"):
        ask(server.url, rank, timeout_s=0.1)
    assert "x-deadline-ms" not in server.headers[0]


def test_a_wait_beyond_the_deadline_is_not_begun(ask: Ask) -> None:
    with misbehaving(says(503, retry_after="3600")) as server, pytest.raises(BusyError) as busy:
        ask(server.url, rank)
    assert (busy.value.retry_after_s, len(server.routes)) == (3600.0, 1)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"ranking":1}'])
def test_an_answer_that_is_none(ask: Ask, body: bytes) -> None:
    with misbehaving(says(200, body)) as server, pytest.raises(RankError, match="is it the FARM service") as unread:
        ask(server.url, rank)
    assert (unread.value.status, len(server.routes)) == (200, 1)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}"])
def test_a_refusal_of_somebody_else(ask: Ask, body: bytes) -> None:
    with misbehaving(says(404, body)) as server, pytest.raises(RankError, match=": 404 Not Found ") as refused:
        ask(server.url, rank)
    assert (refused.value.status, refused.value.problem) == (404, {})


def test_events(ask: Ask) -> None:
    with misbehaving(says(500), says(503), says(202, {"accepted": 2, "request_id": "r"})) as server:
        assert ask(server.url, lambda client: client.send_events([{"type": "user"}] * 2)) == 2
    assert server.routes == ["/events"] * 3
    assert server.bodies[0] == server.bodies[2] == b'{"events":[{"type":"user"},{"type":"user"}]}'


def test_what_is_sent(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_API_KEY", "farm_env_secret")
    given = {"traceparent": "00-1", "X-Request-Id": "front-7"}
    with misbehaving(ranks) as server:
        candidates = np.array([2, 3])
        ask(server.url, lambda client: client.rank("u", candidates, 0, 5, 7, True, 900, "low", given))
        ask(server.url + "/behind/", rank, api_key="farm_arg_secret")
        ask(server.url, rank, api_key="")
    first, second, third = server.headers
    assert orjson.loads(server.bodies[0]) == {
        "user_id": "u",
        "candidates": [2, 3],
        "page": 0,
        "top_k": 5,
        "now_ms": 7,
        "debug": True,
    }
    assert (first["traceparent"], first["x-request-id"], first["x-priority"]) == ("00-1", "front-7", "low")
    assert (first["authorization"], first["content-type"]) == ("Bearer farm_env_secret", "application/json")
    assert (second["authorization"], server.routes[1]) == ("Bearer farm_arg_secret", "/behind/rank")
    assert "authorization" not in third


def test_nobody_is_there(ask: Ask) -> None:
    with pytest.raises(NoAnswerError, match=r"127\.0\.0\.1:9: .*3 tries, request [0-9a-f]{32}") as absent:
        ask(ABSENT, rank)
    assert (absent.value.status, absent.value.tries) == (None, 3)
    assert ask(ABSENT, lambda client: client.ready()) is False


@pytest.mark.parametrize("url", ["", "ftp://x", "http://", "http://x:99999", "http://a:b@x", "http://x/?y"])
def test_no_url(ask: Ask, url: str) -> None:
    with pytest.raises(RankError, match="no URL of a service, such as"):
        ask(url, rank)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"retries": -1}, "retries: must be at least 0, not -1"),
        ({"connections": 0}, "connections: must be at least 1, not 0"),
        ({"timeout_s": 0.0}, r"timeout_s: must be more than 0, not 0\.0"),
        ({"api_key": "a\nb"}, "api_key .* without spaces"),
    ],
    ids=["retries", "connections", "timeout", "key"],
)
def test_wrong_options(ask: Ask, options: dict[str, Any], text: str) -> None:
    with pytest.raises(RankError, match=text) as wrong:
        ask(ABSENT, rank, **options)
    assert "a\nb" not in str(wrong.value)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda client: client.rank(1, [2], deadline_ms=0), "deadline_ms: must be an integer, .* not 0"),
        (lambda client: client.rank(1, [2], deadline_ms=60_001), "deadline_ms: .* to 60000, not 60001"),
        (lambda client: client.rank(object(), [2]), "cannot be sent as JSON"),
        (lambda client: client.rank(2**70, [2]), "cannot be sent as JSON"),
        (lambda client: client.rank(1, [2], headers={"a": "ä"}), "headers must be ASCII"),
        (lambda client: client.rank(1, [2], headers={"a": "b\r\nc: d"}), "cannot be sent"),
    ],
    ids=["short", "long", "object", "big", "letters", "lines"],
)
def test_what_cannot_be_sent(ask: Ask, call: Callable[[Any], Any], text: str) -> None:
    with misbehaving(ranks) as server, pytest.raises(RankError, match=text):
        ask(server.url, call)
    assert server.routes == []


def test_threads_share_a_client() -> None:
    with misbehaving(together(8)) as server, RankClient(server.url) as client, ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: client.rank(1, [2]), range(32)))
    assert len(answers) == 32
    assert len({headers["x-request-id"] for headers in server.headers}) == 32


def test_tasks_share_a_client() -> None:
    async def ask_at_once(url: str) -> list[Any]:
        async with AsyncRankClient(url) as client:
            return await asyncio.gather(*(client.rank(1, [2]) for _ in range(8)))

    with misbehaving(together(8)) as server:
        assert len(asyncio.run(ask_at_once(server.url))) == 8


def test_a_task_that_is_cancelled_leaves_the_client_whole() -> None:
    async def cancel_then_ask(url: str) -> Any:
        async with AsyncRankClient(url, connections=1) as client:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.rank(1, [2]), 0.2)
            return await client.rank(1, [2])

    with misbehaving(says_nothing, ranks) as server:
        assert asyncio.run(cancel_then_ask(server.url)).model_version == "m"


def test_connections_are_limited(ask: Ask) -> None:
    """Of two calls one gets the connection, and the other has no time left when it is free."""

    async def ask_both(client: AsyncRankClient) -> Any:
        first = asyncio.ensure_future(client.rank(1, [2], deadline_ms=3000))
        await asyncio.to_thread(wait_until, lambda: bool(server.routes), "the first is there")
        with pytest.raises(DeadlineError, match="all connections of this client were in use"):
            await client.rank(1, [2], deadline_ms=50)
        first.cancel()

    def both(client: Any) -> Any:
        if isinstance(client, AsyncRankClient):
            return ask_both(client)
        with ThreadPoolExecutor(1) as threads:
            first = threads.submit(client.rank, 1, [2], deadline_ms=3000)
            wait_until(lambda: bool(server.routes), "the first is there")
            with pytest.raises(DeadlineError, match="all connections of this client were in use"):
                client.rank(1, [2], deadline_ms=50)
            assert isinstance(first.exception(), DeadlineError)
        return None

    with misbehaving(says_nothing) as server:
        ask(server.url, both, connections=1)
    assert len(server.routes) == 1


_GREENLETS = """
from gevent import monkey; monkey.patch_all()
import sys, gevent
from service.client import RankClient
client = RankClient(sys.argv[1])
jobs = [gevent.spawn(client.rank, 1, [2], deadline_ms=9000) for _ in range(8)]
gevent.joinall(jobs)
print(sum(job.get().ranking[0].author_id for job in jobs))
"""


def test_greenlets_share_a_client() -> None:
    with misbehaving(together(8)) as server:
        assert _python(_GREENLETS, server.url).stdout == "16\n"


def test_without_httpx_one_line_says_what_to_install() -> None:
    told = _python(
        "import sys; sys.modules['httpx'] = None; sys.argv[1:] = "
        "['rank', '--url', 'http://127.0.0.1:9', '--user', '1', '--candidates', '2']; import farm; farm.main()"
    )
    line = "farm: service.client needs the package `httpx`: install the extra `client`\n"
    assert (told.returncode, told.stderr) == (1, line)


def test_a_server_starts_without_the_client() -> None:
    told = _python("import farm, service.server, service.app, service.worker, sys; print('httpx' in sys.modules)")
    assert told.stdout == "False\n", told.stderr


def _python(program: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=60)
