"""Locust, headless, against the real service: exit statuses, verdicts, and what it does when it is too slow itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from loadtest.bench.cores import Cores
from loadtest.bench.service_stores import AUTHORS, filled_store
from loadtest.bench.store_data import author_ids, user_ids
from loadtest.process import PATIENT, running_service
from loadtest.redis_servers import free_port

USERS = 60
EASY = {
    "FARM_LOAD_MAX_P50_MS": "2000",
    "FARM_LOAD_MAX_P95_MS": "5000",
    "FARM_LOAD_MAX_P99_MS": "5000",
    "FARM_LOAD_MIN_ARRIVALS_SHARE": "0.5",
    "FARM_LOAD_CANDIDATES": "50:1",
    "FARM_LOAD_PACE": "0.005",
    "FARM_LOAD_VISIBLE_MS": "0",
    "FARM_LOAD_WARM_UP_S": "0",
}
"""What a busy machine keeps too."""


@dataclass(frozen=True)
class Load:
    """One run."""

    status: int
    output: str
    report: dict[str, Any] | None

    def missed(self) -> list[str]:
        assert self.report is not None, self.output
        return [objective["claim"] for objective in self.report["objectives"] if not objective["holds"]]


@pytest.fixture(scope="module")
def service(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Its URL, and a file of the ids that its store knows."""
    folder = tmp_path_factory.mktemp("locust")
    ids = folder / "ids.json"
    ids.write_text(json.dumps({"users": user_ids(USERS).tolist(), "authors": author_ids(AUTHORS).tolist()}))
    with (
        filled_store("lmdb", USERS, folder, {Cores.of_this_process().others}) as store,
        running_service(artifact, store, **PATIENT) as process,
    ):
        yield process.url, ids


def locust(url: str, folder: Path, *options: str, **environment: str) -> Load:
    report = folder / "report.json"
    done = subprocess.run(
        [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--host", url, "--headless", *options],
        env={**os.environ, **EASY, "FARM_LOAD_REPORT": str(report), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    found = json.loads(report.read_text()) if report.is_file() else None
    return Load(done.returncode, done.stdout + done.stderr, found)


def test_an_open_loop_that_is_kept_exits_with_0(service: tuple[str, Path], tmp_path: Path) -> None:
    url, ids = service
    page = tmp_path / "pages" / "load.html"
    settings = {"FARM_LOAD_RATE": "40", "FARM_LOAD_SECONDS": "3", "FARM_LOAD_IDS": str(ids)}
    done = locust(url, tmp_path, "--only-summary", "--html", str(page), **settings)
    assert done.status == 0, done.output
    assert done.report is not None
    assert done.report["met"]
    assert "met    wrong answers: 0 <= 0" in done.output
    figures = done.report["figures"]
    assert figures["rankings"] == figures["arrivals_asked"]
    assert 60 <= figures["arrivals_asked"] <= 120
    assert figures["fresh_answers"] > 0
    assert figures["events_requests"] > 0
    assert "/rank again" in page.read_text()


def test_objectives_that_cannot_be_kept_exit_with_1(service: tuple[str, Path], tmp_path: Path) -> None:
    url, ids = service
    settings = {"FARM_LOAD_SECONDS": "2", "FARM_LOAD_IDS": str(ids), "FARM_LOAD_MAX_P50_MS": "0.001"}
    done = locust(url, tmp_path, "-u", "2", **settings)
    assert done.status == 1, done.output
    assert done.missed() == ["rankings: p50, ms"], done.output
    assert "MISSED rankings: p50, ms" in done.output


def test_a_generator_that_is_too_slow_says_so(service: tuple[str, Path], tmp_path: Path) -> None:
    url, ids = service
    done = locust(
        url,
        tmp_path,
        FARM_LOAD_IDS=str(ids),
        FARM_LOAD_RATE="30000",
        FARM_LOAD_SECONDS="1",
        FARM_LOAD_PATIENCE_S="0.5",
        FARM_LOAD_EVENTS="false",
    )
    assert done.status == 1, done.output
    assert "share of arrivals begun in time" in done.missed(), done.output


def test_no_service_is_one_line_and_exits_with_1(tmp_path: Path) -> None:
    done = locust(f"http://127.0.0.1:{free_port()}", tmp_path, FARM_LOAD_RATE="10", FARM_LOAD_SECONDS="20")
    assert done.status == 1
    assert "not measured: http://127.0.0.1:" in done.output


def test_a_setting_that_there_is_not_ends_it(tmp_path: Path) -> None:
    done = locust("http://127.0.0.1:1", tmp_path, FARM_LOAD_SPEED="9")
    assert done.status != 0
    assert "locustfile: FARM_LOAD_SPEED: there is no such setting" in done.output
    assert "Traceback" not in done.output
