"""The service as processes: refusals at start, several workers, signals."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from feature_store.schema import EVENT_KEYS, RecordSchema
from feature_store.store import open_store
from loadtest.process import ServiceFailedError, ServiceProcess, running_service
from loadtest.redis_servers import valkey
from model.artifact.manifest import TABLES, Artifact

BODY = {"user_id": 1, "candidates": [1, 2, 3]}


def post(url: str, body: object = BODY) -> httpx.Response:
    """On a connection of its own, so that any worker may take it."""
    return httpx.post(f"{url}/rank", json=body, timeout=20.0, trust_env=False)


def workers(service: ServiceProcess) -> list[int]:
    """Ids of the worker processes."""
    return [worker["pid"] for worker in service.workers() if worker["state"] == "ready"]


def admin(service: ServiceProcess, path: str) -> httpx.Response:
    return httpx.get(f"{service.admin_url}{path}", timeout=20.0, trust_env=False)


def sent_to(service: ServiceProcess, worker: int, bodies: list[object]) -> list[int]:
    """Statuses of rankings that one worker answers, because the others are stopped meanwhile."""
    others = [pid for pid in workers(service) if pid != worker]
    for other in others:
        os.kill(other, signal.SIGSTOP)
    try:
        return [post(service.url, body).status_code for body in bodies]
    finally:
        for other in others:
            os.kill(other, signal.SIGCONT)


def wait_until(condition: Callable[[], bool], within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def refusal(artifact: Path, store: str, *options: str) -> str:
    """The one line with which the service refuses to start."""
    with pytest.raises(ServiceFailedError) as failed, running_service(artifact, store, *options):
        pass
    assert failed.value.status == 1
    lines = failed.value.errors.splitlines()
    assert len(lines) == 1, failed.value.errors
    return lines[0]


async def make_store(url: str, schema: RecordSchema) -> None:
    async with open_store(url, schema, create=True):
        pass


def without_a_column(artifact: Path, store_url: str) -> tuple[RecordSchema, str]:
    """A schema that lacks a column that the model reads, and which."""
    view = Artifact.open(artifact).manifest.view
    column = next(column for column in view.columns("video") if column not in EVENT_KEYS)
    schema = open_store(store_url).schema
    less = schema.model_copy(update={"video": tuple(field for field in schema.video if field.name != column)})
    return RecordSchema.model_validate(less.model_dump()), column


@pytest.mark.parametrize("count", ["1", "2"])
def test_a_store_that_lacks_a_field_is_refused(artifact: Path, store_url: str, tmp_path: Path, count: str) -> None:
    schema, column = without_a_column(artifact, store_url)
    url = f"lmdb://{tmp_path / 'less'}"
    asyncio.run(make_store(url, schema))
    line = refusal(artifact, url, "--workers", count)
    assert f"lacks video.{column}, which the model reads" in line


def test_no_refusal_shows_the_password_of_a_store(artifact: Path, store_url: str) -> None:
    schema, column = without_a_column(artifact, store_url)
    with valkey(password="hush-9") as server:
        url = f"redis://:{{}}@{server.address}?namespace=less"
        asyncio.run(make_store(url.format("hush-9"), schema))
        lines = [refusal(artifact, url.format(password)) for password in ("hush-9", "hush-8")]
    assert f"lacks video.{column}, which the model reads" in lines[0]
    assert "password" in lines[1]
    assert not [line for line in lines if "hush" in line]


def test_a_truncated_artifact_is_refused(artifact: Path, store_url: str, tmp_path: Path) -> None:
    broken = tmp_path / "artifact"
    shutil.copytree(artifact, broken)
    os.truncate(broken / TABLES, (broken / TABLES).stat().st_size - 1)
    line = refusal(broken, store_url)
    assert TABLES in line
    assert "the manifest says" in line


def test_a_changed_artifact_is_refused_by_checksum(artifact: Path, store_url: str, tmp_path: Path) -> None:
    broken = tmp_path / "artifact"
    shutil.copytree(artifact, broken)
    content = bytearray((broken / TABLES).read_bytes())
    content[len(content) // 2] ^= 1
    (broken / TABLES).write_bytes(content)
    assert "sha256" in refusal(broken, store_url)


def test_absent_things_are_refused(artifact: Path, store_url: str, tmp_path: Path) -> None:
    assert "manifest.json" in refusal(tmp_path, store_url)
    assert "no store at" in refusal(artifact, f"lmdb://{tmp_path / 'none'}")


def test_a_port_in_use_is_refused(artifact: Path, store_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"cannot listen on 127.0.0.1:{port}" in refusal(artifact, store_url, "--port", port)


def test_environment_variables_set_options(artifact: Path, store_url: str) -> None:
    with running_service(artifact, store_url, FARM_MAX_CANDIDATES="2") as service:
        assert post(service.url).status_code == 422
        assert post(service.url, {**BODY, "candidates": [1, 2]}).status_code == 200


def test_an_admin_port_in_use_is_refused(artifact: Path, store_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        line = refusal(artifact, store_url, "--admin-port", port)
        assert line == f"farm serve: cannot listen on 127.0.0.1:{port} (--admin-port): Address already in use"


def test_totals_are_exact_though_a_worker_is_killed(artifact: Path, store_url: str) -> None:
    """The counts of the dead worker stay, its gauges go, and another one goes on counting."""
    with running_service(artifact, store_url, "--workers", "2") as service:
        first, second = workers(service)
        for worker in (first, second):
            assert sent_to(service, worker, [BODY] * 5 + [{"user_id": 1}]) == [200] * 5 + [422]
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: len(workers(service)) == 2 and first not in workers(service))
        for worker in workers(service):
            assert sent_to(service, worker, [BODY] * 3) == [200] * 3
        text = admin(service, "/metrics").text
        assert 'farm_http_requests_total{route="/rank",status="200"} 16.0' in text
        assert 'farm_http_requests_total{route="/rank",status="422"} 2.0' in text
        assert 'farm_http_request_duration_seconds_count{route="/rank"} 18.0' in text
        assert 'farm_rank_stage_duration_seconds_count{stage="candidate_tower"} 16.0' in text
        assert 'farm_workers{role="worker",state="ready"} 2.0' in text
        assert 'farm_worker_restarts_total{role="worker"} 1.0' in text
        assert text.count("farm_model_info{") == 1
        assert service.stop() == 0


def test_the_admin_port_tells_of_all_workers(artifact: Path, store_url: str) -> None:
    with running_service(artifact, store_url, "--workers", "2") as service:
        version = httpx.get(f"{service.url}/version", trust_env=False).json()
        assert admin(service, "/livez").json() == {"status": "alive"}
        assert admin(service, "/readyz").json() == {"status": "ready"}
        assert admin(service, "/version").json()["model_versions"] == [version["model_version"]]
        assert [worker["state"] for worker in service.workers()] == ["ready", "ready"]
        os.kill(workers(service)[0], signal.SIGKILL)
        wait_until(lambda: admin(service, "/readyz").status_code == 503)
        refused = admin(service, "/readyz")
        assert refused.headers["content-type"] == "application/problem+json"
        assert refused.json()["detail"] == "1 of 2 processes are ready"
        assert httpx.get(f"{service.url}/readyz", trust_env=False).status_code == 200
        hidden = httpx.get(f"{service.url}/metrics", trust_env=False)
        assert (hidden.status_code, hidden.headers["content-type"]) == (404, "application/problem+json")


def test_connections_are_shared_out_evenly(artifact: Path, store_url: str) -> None:
    """Eight clients that keep their connections: four on each worker, though all came at once."""
    with running_service(artifact, store_url, "--workers", "2") as service, ExitStack() as stack:
        parts = urlsplit(service.url)
        for _ in range(8):
            stack.enter_context(socket.create_connection((parts.hostname, parts.port), 10))
        wait_until(lambda: sum(connections(pid, parts.port) for pid in workers(service)) == 8)
        assert {connections(pid, parts.port) for pid in workers(service)} <= {3, 4, 5}


def connections(pid: int, port: int | None) -> int:
    """Open connections to the port that a process has accepted."""
    lines = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    established = "01"
    sockets = {line[9] for line in lines if line[1].endswith(f":{port:04X}") and line[3] == established}
    links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]
    return sum(link.removeprefix("socket:[").removesuffix("]") in sockets for link in links)


def test_workers_without_a_parent_end(artifact: Path, store_url: str, tmp_path: Path) -> None:
    with running_service(artifact, store_url, "--workers", "2", TMPDIR=str(tmp_path)) as service:
        alive = workers(service)
        service.process.kill()
        service.process.wait()
        wait_until(lambda: not any(running(pid) for pid in alive))


def test_a_worker_that_dies_again_and_again_is_replaced_ever_later(artifact: Path, store_url: str) -> None:
    with running_service(artifact, store_url) as service:
        for _ in range(2):
            os.kill(workers(service)[0], signal.SIGKILL)
            wait_until(lambda: not workers(service))
            wait_until(lambda: bool(workers(service)))
        assert post(service.url).status_code == 200
        service.errors.seek(0)
        lines = [json.loads(line)["message"] for line in service.errors.read().splitlines()]
        assert lines[0].endswith("ended with -9; starting another in 1 s")
        assert lines[1].endswith("ended with -9; starting another in 2 s, 2 ends in a row")


def running(pid: int) -> bool:
    """Not a zombie that waits for whoever adopted it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_sigterm_lets_a_request_finish(artifact: Path, store_url: str) -> None:
    with running_service(artifact, store_url) as service:
        parts = urlsplit(service.url)
        body = b'{"user_id": 1, "candidates": [1, 2, 3]}'
        head = (
            f"POST /rank HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        with socket.create_connection((parts.hostname, parts.port), 10) as raw:
            raw.sendall(head.encode() + body[:10])
            time.sleep(0.3)
            status: list[int] = []
            stopping = threading.Thread(target=lambda: status.append(service.stop()))
            stopping.start()
            time.sleep(0.5)
            raw.sendall(body[10:])
            assert raw.recv(100).startswith(b"HTTP/1.1 200 ")
        stopping.join()
        assert status == [0]
        service.errors.seek(0)
        assert service.errors.read() == ""


def test_a_second_sigterm_ends_at_once(artifact: Path, store_url: str) -> None:
    with running_service(artifact, store_url, FARM_DRAIN_TIMEOUT_S="60") as service:
        parts = urlsplit(service.url)
        with socket.create_connection((parts.hostname, parts.port), 10) as raw:
            raw.sendall(
                b"POST /rank HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
            )
            time.sleep(0.3)
            service.process.send_signal(signal.SIGTERM)
            wait_until(lambda: admin(service, "/readyz").status_code == 503)
            assert admin(service, "/readyz").json()["detail"] == "the service is being stopped"
            assert service.stop(timeout_s=10) == 1
        service.errors.seek(0)
        assert "1 worker was killed at the second signal" in service.errors.read()


def test_no_request_fails_while_the_service_stops(artifact: Path, store_url: str) -> None:
    """Clients that come with a new connection each are answered, or refused before they could send anything."""
    with running_service(artifact, store_url, "--workers", "2") as service:
        ended, lost = threading.Event(), []

        def client() -> None:
            while not ended.is_set():
                try:
                    assert post(service.url).status_code == 200
                except httpx.ConnectError:
                    return
                except httpx.HTTPError as error:
                    lost.append(error)

        clients = [threading.Thread(target=client) for _ in range(4)]
        for thread in clients:
            thread.start()
        time.sleep(0.5)
        status = service.stop()
        ended.set()
        for thread in clients:
            thread.join()
        assert (status, lost) == (0, [])


def test_sigint_is_a_clean_end_too(artifact: Path, store_url: str) -> None:
    with running_service(artifact, store_url) as service:
        service.process.send_signal(signal.SIGINT)
        assert service.process.wait(20) == 0
