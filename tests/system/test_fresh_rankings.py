"""Events over HTTP into rankings: a real service, a real store, a real worker; and rankings without the store."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from feature_store.events.log import EventLog
from feature_store.events.worker import EventWorker
from feature_store.store import open_store
from loadtest.process import ServiceProcess, running_service
from loadtest.redis_servers import Server, valkey
from model.datasets.prepared import Prepared
from model.materialize import materialize
from service.client import RankClient, RankError

PATIENCE_S = 60.0  # of the tests; how fresh rankings are is measured by `farm bench events`
TIMEOUT_S = 0.5  # of a command of the store
NEW_USER = 2**61
NEW_AUTHOR = 2**60


@dataclass
class Fresh:
    """A running service over a store of its own."""

    service: ServiceProcess
    server: Server | None  # of Redis
    known_user: int

    def rank(self, user_id: int, **more: object) -> dict[str, Any]:
        body = {"user_id": user_id, "candidates": [NEW_AUTHOR], "debug": True, **more}
        answer = httpx.post(f"{self.service.url}/rank", json=body, timeout=PATIENCE_S, trust_env=False)
        assert answer.status_code == 200, answer.text
        content: dict[str, Any] = answer.json()
        return content

    def send(self, *events: dict[str, object]) -> httpx.Response:
        body = {"events": events}
        return httpx.post(f"{self.service.url}/events", json=body, timeout=PATIENCE_S, trust_env=False)

    def metrics(self) -> str:
        return httpx.get(f"{self.service.admin_url}/metrics", trust_env=False).text


def stored_user(prepared: Prepared) -> int:
    """One with a history."""
    events = prepared.events["live"]
    return int(prepared.user_ids()[int((events.offsets[1:] > events.offsets[:-1]).argmax())])


@contextmanager
def working(url: str) -> Iterator[None]:
    """A worker that merges what is in the log, in a thread; nothing where there is no log."""
    begun: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
    started = threading.Event()

    async def work() -> None:
        async with open_store(url) as store:
            stop = asyncio.Event()
            begun.append((asyncio.get_running_loop(), stop))
            started.set()
            if (log := EventLog.of(store)) is not None:
                await EventWorker(log, store, "test").run(stop)

    thread = threading.Thread(target=lambda: asyncio.run(work()))
    thread.start()
    try:
        assert started.wait(PATIENCE_S)
        yield
    finally:
        for loop, stop in begun:
            if not loop.is_closed():
                loop.call_soon_threadsafe(stop.set)
        thread.join()


@pytest.fixture(scope="module", params=["lmdb", "redis"])
def fresh(
    request: pytest.FixtureRequest, artifact: Path, prepared: Prepared, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fresh]:
    """Two workers of the service, so that they share nothing but the store."""
    known = stored_user(prepared)
    if request.param == "lmdb":
        url = f"lmdb://{tmp_path_factory.mktemp('fresh') / 'store'}"
        asyncio.run(materialize(prepared, url))
        with running_service(artifact, url, "--workers", "2") as service:
            yield Fresh(service, None, known)
        return
    with valkey() as server:
        url = f"{server.url}?namespace=fresh"
        asyncio.run(materialize(prepared, url))
        with working(url), running_service(artifact, url, "--workers", "2") as service:
            yield Fresh(service, server, known)


def clock() -> int:
    return int(1000 * time.time())


def until(holds: Callable[[], bool], what: str) -> None:
    ends = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < ends, what
        time.sleep(0.01)


def test_events_reach_rankings(fresh: Fresh) -> None:
    start = clock() - 60_000
    begun = {"type": "live_view", "user_id": NEW_USER, "view_id": 1, "event_time": start, "author_id": NEW_AUTHOR}
    author = {"type": "author", "author_id": NEW_AUTHOR, "live_id": 5, "updated_at": clock()}
    assert fresh.rank(NEW_USER)["degraded"] == ["no_history", "unknown_authors"]
    accepted = fresh.send(begun, author)
    assert (accepted.status_code, accepted.json()["accepted"]) == (202, 2)
    until(lambda: fresh.rank(NEW_USER)["debug"]["live"]["stored"] == 1, "the view is stored")
    assert fresh.rank(NEW_USER)["debug"]["live"]["events"] == 0  # its outcome is not known yet
    for _ in range(2):  # the second says nothing new
        assert fresh.send({**begun, "known_at": start + 50_000, "behaviours": ["like"]}).status_code == 202
    until(lambda: fresh.rank(NEW_USER)["debug"]["live"]["events"] == 1, "the view is read")
    after = fresh.rank(NEW_USER, now_ms=start + 51_000)
    assert after["debug"]["live"] == {"events": 1, "stored": 1, "newest_age_ms": 1_000}

    def known() -> bool:
        answer = fresh.rank(NEW_USER)
        return answer["degraded"] == [] and answer["ranking"][0]["live_id"] == 5

    until(known, "the author is known, whom a cache may remember as unknown")


def test_events_join_a_history_that_was_materialized(fresh: Fresh) -> None:
    before = fresh.rank(fresh.known_user)["debug"]
    assert before["live"]["stored"] > 0
    view = {"type": "live_view", "user_id": fresh.known_user, "view_id": NEW_USER, "event_time": clock() - 5_000}
    assert fresh.send({**view, "known_at": clock() - 1_000}).status_code == 202

    def joined() -> bool:
        age = fresh.rank(fresh.known_user)["debug"]["live"]["newest_age_ms"]
        return bool(age < before["live"]["newest_age_ms"] - 1_000)

    until(joined, "the view is the newest of the history")
    after = fresh.rank(fresh.known_user)["debug"]
    assert after["live"]["stored"] >= before["live"]["stored"]
    assert after["user"]["version"] > before["user"]["version"]


def test_accepted_events_are_counted_over_all_workers(fresh: Fresh) -> None:
    def accepted() -> float:
        name = 'farm_events_accepted_total{type="user"} '
        return next((float(line[len(name) :]) for line in fresh.metrics().splitlines() if line.startswith(name)), 0.0)

    before = accepted()
    for user in range(NEW_USER, NEW_USER + 8):
        with RankClient(fresh.service.url) as client:  # a connection of its own, so that either may take it
            assert client.send_events([{"type": "user", "user_id": user, "updated_at": clock()}] * 2) == 2
            with pytest.raises(RankError, match=r"422 .*events\[0\]\.updated_at: is required"):
                client.send_events([{"type": "user", "user_id": user}])
            assert client.rank(user, [1], debug=True).debug is not None
    assert accepted() - before == 16


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL], ids=["stalled", "killed"])
def test_rankings_go_on_without_the_server(artifact: Path, prepared: Prepared, how: signal.Signals) -> None:
    known = stored_user(prepared)
    with valkey() as server:
        asyncio.run(materialize(prepared, server.url))
        with running_service(artifact, server.url, FARM_REDIS_TIMEOUT_S=str(TIMEOUT_S)) as service:
            fresh = Fresh(service, server, known)
            assert "no_history" not in fresh.rank(known)["degraded"]
            assert server.process is not None
            server.process.send_signal(how)
            for _ in range(3):
                answer = fresh.rank(known)
                assert answer["degraded"] == ["stale_history", "unknown_authors"]  # as it was read last
            refused = fresh.send({"type": "user", "user_id": 1, "updated_at": clock()})
            assert refused.status_code == 503
            assert refused.json()["type"] == "urn:farm:problem:store-unavailable"
            assert int(refused.headers["retry-after"]) >= 1
            if how == signal.SIGSTOP:
                server.process.send_signal(signal.SIGCONT)
                until(lambda: "stale_history" not in fresh.rank(known)["degraded"], "histories are read again")
            assert service.stop() == 0
