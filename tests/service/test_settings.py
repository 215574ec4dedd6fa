"""Settings of the service: what is derived from them, and one line for what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from feature_store.cells import FOLDER
from service.lifecycle.settings import read_lifecycle
from service.settings import Settings, read_settings

GIVEN = {"artifact": Path("artifact"), "store": "lmdb://store"}


def test_every_wrong_setting_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_STATE_CACHE_MB", "-1")
    monkeypatch.setenv("FARM_DEVICES", "0,a")
    with pytest.raises(ValueError, match="FARM_PROVIDER") as refused:
        read_settings(**GIVEN, provider="cpu,gpu")
    assert str(refused.value).split("; ") == [
        "FARM_PROVIDER: must be one of cpu, cuda, tensorrt, or several separated by commas",
        "FARM_STATE_CACHE_MB: Input should be greater than or equal to 0",
        "FARM_DEVICES: must be numbers of GPUs separated by commas, such as 0,1",
    ]


def test_no_time_is_infinite() -> None:
    with pytest.raises(ValueError, match=r"^FARM_GRACE_S: Input should be a finite number$"):
        read_lifecycle(grace_s="inf")


@pytest.mark.parametrize("name", ["formula", "record_schema"])
def test_a_file_that_is_not_there_is_named_by_its_setting(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"^FARM_{name.upper()}: Path does not point to a file$"):
        read_settings(**GIVEN, **{name: tmp_path / "nothing.json"})


def test_options_overrule_an_environment_that_is_wrong(tmp_path: Path) -> None:
    environment = {**os.environ, "FARM_PORT": "99999", FOLDER: str(tmp_path)}
    command = [sys.executable, "-c", "import service.preload"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("options", "processes"),
    [
        ({}, 0),
        ({"provider": "cuda,cpu", "devices": "0,3"}, 2),
        ({"provider": "cuda", "engine": "inline"}, 0),
        ({"engine": "process"}, 1),
    ],
)
def test_towers_run_in_processes_of_their_own_with_gpus(options: dict[str, str], processes: int) -> None:
    assert Settings(**GIVEN, **options).engine_processes == processes


def test_a_worker_of_one_core_has_no_executor_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.settings.usable_cores", lambda: 4)
    assert [Settings(**GIVEN, workers=count).executor_count for count in (1, 2, 3, 4, 8)] == [4, 2, 0, 0, 0]
    assert Settings(**GIVEN, workers=8, executors=3).executor_count == 3
