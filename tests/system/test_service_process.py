"""The service as processes: refusals at start, several workers, signals."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
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
    pid = service.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]


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
    lines.append(refusal(artifact, url.format("hush-9")))  # nobody is there any more
    assert f"lacks video.{column}, which the model reads" in lines[0]
    assert "password" in lines[1]
    assert "refused" in lines[2]
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


def test_two_workers_answer_and_are_counted_together(artifact: Path, store_url: str) -> None:
    with running_service(artifact, store_url, "--workers", "2") as service:
        first, second = workers(service)
        for stopped in (first, second):  # so that the other one answers
            os.kill(stopped, signal.SIGSTOP)
            try:
                for _ in range(5):
                    assert post(service.url).status_code == 200
                assert post(service.url, {"user_id": 1}).status_code == 422
            finally:
                os.kill(stopped, signal.SIGCONT)
        for _ in range(4):
            text = httpx.get(f"{service.url}/metrics", trust_env=False).text
            assert 'farm_http_requests_total{route="/rank",status="200"} 10.0' in text
            assert 'farm_http_requests_total{route="/rank",status="422"} 2.0' in text
            assert 'farm_rank_stage_duration_seconds_count{stage="candidate_tower"} 10.0' in text
            assert 'farm_rank_degraded_total{reason="unknown_authors"}' in text
            assert text.count("farm_model_info{") == 1
        assert service.stop() == 0
        assert not [pid for pid in (first, second) if Path(f"/proc/{pid}").exists()]


def test_a_worker_that_dies_is_replaced(artifact: Path, store_url: str, tmp_path: Path) -> None:
    with running_service(artifact, store_url, "--workers", "2", TMPDIR=str(tmp_path)) as service:
        first, second = workers(service)
        os.kill(first, signal.SIGKILL)
        assert post(service.url).status_code == 200
        deadline = time.monotonic() + 20
        while len(alive := workers(service)) < 2 or first in alive:
            assert time.monotonic() < deadline, alive
            time.sleep(0.1)
        assert second in alive
        os.kill(service.process.pid, signal.SIGKILL)  # and workers without a parent end
        service.process.wait()
        while any(Path(f"/proc/{pid}").exists() and running(pid) for pid in alive):
            assert time.monotonic() < deadline, alive
            time.sleep(0.1)


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


def test_locust_finds_every_answer_right(artifact: Path, store_url: str) -> None:
    with running_service(artifact, store_url) as service:
        load = [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--host", service.url]
        done = subprocess.run(
            [*load, "--headless", "-u", "2", "-r", "2", "-t", "3s", "--only-summary"], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        metrics = httpx.get(f"{service.url}/metrics", trust_env=False).text
        assert 'route="/rank",status="200"' in metrics


def test_sigint_is_a_clean_end_too(artifact: Path, store_url: str) -> None:
    with running_service(artifact, store_url) as service:
        service.process.send_signal(signal.SIGINT)
        assert service.process.wait(20) == 0
