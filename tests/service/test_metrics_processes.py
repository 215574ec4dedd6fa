"""Metrics of the processes, the switch that stops all counting, and gauges that need no traffic."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from multiprocessing import current_process
from pathlib import Path

import pytest
from prometheus_client import REGISTRY, Metric
from service_facts import Client

from service.ask import Ask
from service.lifecycle.places import Place
from service.processes import ProcessesCollector, resources_of

SCRIPT = """
import sys
from prometheus_client import generate_latest
from service.metrics import count_answer, observe_ranking
count_answer("/rank", 200)
observe_ranking({"parse": 0.5}, 10, 2, ["no_history"])
sys.stdout.buffer.write(generate_latest())
"""


def samples(families: list[Metric]) -> dict[tuple[str, ...], float]:
    """By name and label values."""
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


def test_processes_by_role_and_state() -> None:
    places = [
        Place("engine", 0, current_process(), ready_at=1.0, restarts=1),
        Place("worker", 0, current_process(), restarts=2),
        Place("worker", 1, restarts=3),
    ]
    told = samples(list(ProcessesCollector(places).collect()))
    assert told["farm_workers", "worker", "starting"] == told["farm_workers", "worker", "ended"] == 1
    assert told["farm_workers", "worker", "ready"] == told["farm_workers", "engine", "ended"] == 0
    assert told["farm_workers", "engine", "ready"] == 1
    assert told["farm_worker_restarts_total", "worker"] == 5
    assert told["farm_worker_restarts_total", "engine"] == 1
    assert {key[1:] for key in told if key[0] == "process_open_fds"} == {
        ("parent", "0"),
        ("engine", "0"),
        ("worker", "0"),
    }


def test_resources_are_those_of_the_process() -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    told = {name: value for (name, *_), value in samples(resources_of(os.getpid())).items()}
    assert told["process_cpu_seconds_total"] >= used.ru_utime + used.ru_stime - 0.05
    assert 0 < told["process_resident_memory_bytes"] <= 1.1 * 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert told["process_open_fds"] >= 3
    assert told["process_max_fds"] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert told["process_start_time_seconds"] < time.time()


def test_a_process_that_is_gone_has_none() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert resources_of(process.pid) == []


@pytest.mark.parametrize(("switch", "count"), [("true", 1), ("false", 0), ("OFF", 0)])
def test_the_switch(switch: str, count: int) -> None:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "FARM_METRICS": switch, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True)
    assert ('farm_http_requests_total{route="/rank",status="200"} 1.0' in done.stdout) is (count == 1)
    assert f"farm_rank_candidates_count {count}.0" in done.stdout
    assert f'farm_rank_degraded_total{{reason="no_history"}} {count}.0' in done.stdout


def test_the_queue_is_shown_without_requests(opened: Client) -> None:
    def tiles() -> float | None:
        return REGISTRY.get_sample_value("farm_admission_queue_tiles", {"priority": "high"})

    with opened() as (_, runtime):
        entrance = runtime.entrance
        with entrance.enter(Ask(b'{"candidates": [1, 2, 3]}', "a-request"), runtime.scorer.costs):
            entrance.show()
            assert tiles()
        entrance.show()
        assert tiles() == 0
