"""`farm serve` with the towers in an engine process, as with a GPU: the same answers, and it may die."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import httpx

from loadtest.process import ServiceProcess, running_service
from loadtest.redis_servers import wait_until

WAIT_S = 60


def rank(service: ServiceProcess, user: int = 3) -> httpx.Response:
    body = {"user_id": user, "candidates": list(range(70)), "now_ms": 1_736_000_000_000}
    return httpx.post(f"{service.url}/rank", json=body, timeout=WAIT_S, trust_env=False)


def scores(answer: httpx.Response) -> list[tuple[Any, ...]]:
    assert answer.status_code == 200, answer.text
    return [(row["author_id"], round(row["score"], 5)) for row in answer.json()["ranking"]]


def admin(service: ServiceProcess, path: str) -> httpx.Response:
    return httpx.get(f"{service.admin_url}{path}", timeout=WAIT_S, trust_env=False)


def engine_pid(service: ServiceProcess) -> int:
    """0 while there is none."""
    (pid,) = [worker["pid"] for worker in admin(service, "/workers").json() if worker["role"] == "engine"]
    return int(pid or 0)


def test_workers_share_an_engine_process_which_is_replaced_when_it_dies(artifact: Path, store_url: str) -> None:
    with running_service(artifact, store_url) as inline:
        expected = scores(rank(inline))
    with running_service(artifact, store_url, "--workers", "2", FARM_ENGINE="process") as service:
        for _ in range(4):
            assert scores(rank(service)) == expected
        assert 'farm_tower_cpu_seconds_total{tower="candidate"}' in admin(service, "/metrics").text
        os.kill(engine_pid(service), signal.SIGKILL)
        wait_until(lambda: admin(service, "/readyz").status_code == 503, "the parent to see it", WAIT_S)
        lost = rank(service)
        assert (lost.status_code, lost.json()["type"].rsplit(":", 1)[-1]) == (503, "engine-unavailable")
        assert int(lost.headers["retry-after"]) >= 1
        wait_until(lambda: admin(service, "/readyz").status_code == 200, "another", WAIT_S)
        for _ in range(4):
            assert scores(rank(service)) == expected
        assert service.stop() == 0


def test_an_engine_process_that_makes_no_progress_is_replaced(artifact: Path, store_url: str) -> None:
    with running_service(artifact, store_url, FARM_ENGINE="process", FARM_WEDGED_S="1") as service:
        stuck = engine_pid(service)
        os.kill(stuck, signal.SIGSTOP)
        wait_until(lambda: engine_pid(service) != stuck, "another", WAIT_S)
        wait_until(lambda: admin(service, "/readyz").status_code == 200, "it is ready", WAIT_S)
        assert rank(service).status_code == 200
