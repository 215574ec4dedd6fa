"""The stop that no request notices, and the worker that gets nowhere: real processes."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from loadtest.process import ServiceProcess, running_service

WAIT_S = 30.0
BODY = b'{"user_id": 1, "candidates": [1, 2, 3]}'
REQUEST = b"POST /rank HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
    len(BODY),
    BODY,
)


class Connection:
    """One that a client keeps."""

    def __init__(self, service: ServiceProcess) -> None:
        parts = urlsplit(service.url)
        self.socket = socket.create_connection((parts.hostname, parts.port), WAIT_S)

    def ask(self, request: bytes = REQUEST) -> tuple[int, bool]:
        """The status, and whether the answer is the last of the connection."""
        self.socket.sendall(request)
        return self.answer()

    def answer(self) -> tuple[int, bool]:
        content = b""
        while not (found := re.search(rb"content-length: (\d+)\r\n.*?\r\n\r\n", content, re.S | re.I)) or (
            len(content) - found.end() < int(found[1])
        ):
            piece = self.socket.recv(65_536)
            assert piece, f"the connection ended after {content!r}"
            content += piece
        return int(content.split(b" ", 2)[1]), b"connection: close" in content.lower()

    def is_closed(self) -> bool:
        """By the service, in an orderly way; waits for it."""
        return self.socket.recv(1) == b""


@contextmanager
def stopping(service: ServiceProcess) -> Iterator[list[int]]:
    """SIGTERM was sent, and has arrived at the workers; at the end the service has ended, with this status."""
    status: list[int] = []
    ready = httpx.Client(base_url=service.url, timeout=WAIT_S, trust_env=False)
    thread = threading.Thread(target=lambda: status.append(service.stop()))
    thread.start()
    wait_until(lambda: ready.get("/readyz").status_code == 503)
    yield status
    thread.join(WAIT_S)


def wait_until(condition: Callable[[], bool], within_s: float = WAIT_S) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def errors(service: ServiceProcess) -> str:
    service.errors.seek(0)
    return service.errors.read()


def test_within_the_grace_period_every_client_is_answered_and_sent_elsewhere(artifact: Path, store_url: str) -> None:
    with running_service(artifact, store_url, FARM_GRACE_S="2") as service:
        kept, idle = Connection(service), Connection(service)
        assert [kept.ask(), idle.ask()] == [(200, False), (200, False)]
        with stopping(service) as status:
            refused = httpx.get(f"{service.admin_url}/readyz", trust_env=False)
            assert (refused.status_code, refused.json()["detail"]) == (503, "the service is being stopped")
            assert kept.ask() == (200, True)
            assert kept.is_closed()
            assert Connection(service).ask() == (200, True)  # one that comes only now
            assert idle.is_closed()
        assert status == [0]
        assert errors(service) == ""


def test_a_request_that_has_begun_is_taken_to_its_end(artifact: Path, store_url: str) -> None:
    """Whether half of its head has come, or of its body."""
    with running_service(artifact, store_url, FARM_GRACE_S="0") as service:
        halves = [(Connection(service), size) for size in (10, len(REQUEST) - 5)]
        for connection, size in halves:
            assert connection.ask() == (200, False)
            connection.socket.sendall(REQUEST[:size])
        idle = Connection(service)
        assert idle.ask() == (200, False)
        stop = threading.Thread(target=service.stop)
        stop.start()
        assert idle.is_closed()  # so the grace period is over
        for connection, size in halves:
            assert connection.ask(REQUEST[size:]) == (200, True)
        stop.join(WAIT_S)
        assert service.process.returncode == 0


def test_no_client_that_keeps_its_connection_sees_the_stop(artifact: Path, store_url: str) -> None:
    """Each sends as soon as it has an answer, on a new connection when that was the last of the old."""
    with running_service(artifact, store_url, "--workers", "2", FARM_GRACE_S="1") as service:
        ended, statuses, lost = threading.Event(), [], []

        def client() -> None:
            connection = Connection(service)
            while not ended.is_set():
                try:
                    status, last = connection.ask()
                    statuses.append(status)
                    connection = Connection(service) if last else connection
                except ConnectionRefusedError:
                    return  # the port is closed: nothing was sent
                except (OSError, AssertionError) as error:
                    lost.append(error)
                    return

        clients = [threading.Thread(target=client) for _ in range(4)]
        for thread in clients:
            thread.start()
        wait_until(lambda: len(statuses) > 50)
        assert service.stop() == 0
        ended.set()
        for thread in clients:
            thread.join()
        assert set(statuses) == {200}
        assert lost == []


def test_a_second_signal_ends_the_grace_period(artifact: Path, store_url: str) -> None:
    with running_service(artifact, store_url, FARM_GRACE_S="600") as service:
        service.process.send_signal(signal.SIGTERM)
        wait_until(lambda: httpx.get(f"{service.url}/readyz", trust_env=False).status_code == 503)
        assert service.stop(timeout_s=10) == 1
        assert "1 worker was killed at the second signal" in errors(service)


def test_a_worker_that_gets_nowhere_fails_liveness_and_is_replaced(artifact: Path, store_url: str) -> None:
    with running_service(artifact, store_url, "--workers", "2", FARM_WEDGED_S="1", FARM_GRACE_S="0") as service:
        live = f"{service.admin_url}/livez"
        stuck, well = (worker["pid"] for worker in service.workers())
        assert httpx.get(live, trust_env=False).status_code == 200
        os.kill(stuck, signal.SIGSTOP)
        wait_until(lambda: stuck not in pids(service))
        wait_until(lambda: len(pids(service)) == 2)
        assert well in pids(service)
        assert httpx.get(live, trust_env=False).status_code == 200
        assert f"worker {stuck} made no progress for 1 s: it is killed" in errors(service)


def pids(service: ServiceProcess) -> list[int]:
    return [worker["pid"] for worker in service.workers() if worker["state"] == "ready"]
