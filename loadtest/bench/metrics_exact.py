"""Of `farm bench metrics`: what several workers count, against what was sent to them, also when some are killed.

A request is counted before the first byte of its answer is sent.  So without a kill counts equal answers, by status;
a request that a killed worker did not answer may be counted, and an answer is never uncounted.
"""

from __future__ import annotations

import os
import signal
import time
import urllib.request
from collections import Counter
from collections.abc import Mapping
from typing import Any

import orjson
from prometheus_client.parser import text_string_to_metric_families

from loadtest.bench.metrics_sizes import Sizes
from loadtest.bench.service_lab import Bodies, Lab, Service
from loadtest.load.run import Load, loading, run_load
from loadtest.load.trace import NO_ANSWER, Trace
from loadtest.redis_servers import wait_until
from model.figures import claim

WORKERS = 4

_CLIENTS = 16
_WRONG = {10: b"{", 25: orjson.dumps({"user_id": 1, "candidates": []})}
"""Every so many-th request is this one, which is answered with a status of its own."""

_PATIENCE_S = 60.0

Counts = Mapping[int, int]
"""Requests by status."""


def exact(lab: Lab, sizes: Sizes) -> dict[str, Any]:
    """Under load, of rankings and of requests that are refused."""
    bodies = _mixed_bodies(lab, sizes)
    with lab.another(lab.store("lmdb"), "--workers", str(WORKERS), cpus=_both(lab)) as service:
        found = run_load(_load(service, bodies, sizes.exact_seconds), lab.cores.others).traced()
        return {**_compared(service, found), "rankings_timed": _timed(service)}


def exact_claims(found: dict[str, Any]) -> list[dict[str, Any]]:
    text = f"{WORKERS} workers, {found['sent']} requests: "
    rankings = found["answered"].get(200, 0)
    return [
        claim(text + "without an answer", found["lost"], "<=", 0),
        claim(text + "counted under a status otherwise than answered with it", _differences(found), "<=", 0),
        claim(text + "rankings in the histogram of stages less rankings", found["rankings_timed"] - rankings, "<=", 0),
        claim(text + "rankings less rankings in the histogram of stages", rankings - found["rankings_timed"], "<=", 0),
    ]


def killed(lab: Lab, sizes: Sizes) -> dict[str, Any]:
    """The same while workers are killed with SIGKILL, and replaced."""
    bodies = _mixed_bodies(lab, sizes)
    longest_s = sizes.kills * _PATIENCE_S
    with lab.another(lab.store("lmdb"), "--workers", str(WORKERS), cpus=_both(lab)) as service:
        with loading(_load(service, bodies, longest_s), lab.cores.others) as running:
            running.wait_begun()
            for number in range(sizes.kills):
                time.sleep(sizes.around_s)
                _kill(service, number)
            time.sleep(sizes.around_s)
            running.stop()
            found = running.result().traced()
        return {"kills": sizes.kills, **_compared(service, found)}


def killed_claims(found: dict[str, Any]) -> list[dict[str, Any]]:
    text = f"{WORKERS} workers, {found['kills']} of them killed, {found['sent']} requests: "
    beyond = found["counted_beyond_answers"] - found["lost"]
    return [
        claim(text + "answered and not counted", found["answered_beyond_counts"], "<=", 0),
        claim(text + "counted and neither answered nor lost with a worker", beyond, "<=", 0),
        claim(text + "lost without an answer, per kill", found["lost"] / found["kills"], "<=", _CLIENTS),
    ]


def counted(service: Service, route: str = "/rank") -> Counts:
    """farm_http_requests_total of a route, now."""
    found: Counter[int] = Counter()
    for name, labels, value in _samples(service):
        if name == "farm_http_requests_total" and labels["route"] == route:
            found[int(labels["status"])] += int(value)
    return found


def _timed(service: Service) -> int:
    """Rankings in the histogram of stages."""
    name, stage = "farm_rank_stage_duration_seconds_count", {"stage": "candidate_tower"}
    return int(sum(value for found, labels, value in _samples(service) if found == name and labels == stage))


def _samples(service: Service) -> list[tuple[str, dict[str, str], float]]:
    with urllib.request.urlopen(f"{service.process.admin_url}/metrics", timeout=30) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    return [(sample.name, sample.labels, sample.value) for family in families for sample in family.samples]


def _compared(service: Service, trace: Trace) -> dict[str, Any]:
    """Counts against answers, by status."""
    answered = dict(trace.statuses())
    lost, counts = answered.pop(NO_ANSWER, 0), counted(service)
    statuses = sorted({*answered, *counts})
    surplus = [counts.get(status, 0) - answered.get(status, 0) for status in statuses]
    return {
        "workers": WORKERS,
        "sent": len(trace),
        "answered": answered,
        "lost": lost,
        "counted": {status: counts.get(status, 0) for status in statuses},
        "counted_beyond_answers": sum(max(0, more) for more in surplus),
        "answered_beyond_counts": sum(max(0, -more) for more in surplus),
    }


def _differences(found: dict[str, Any]) -> int:
    return int(found["counted_beyond_answers"] + found["answered_beyond_counts"])


def _kill(service: Service, number: int) -> None:
    """One of the workers; returns when all answer again."""
    victim = service.pids()[number % WORKERS]
    os.kill(victim, signal.SIGKILL)

    def is_replaced() -> bool:
        workers = service.process.workers()
        return all(worker["state"] == "ready" and worker["pid"] != victim for worker in workers)

    wait_until(is_replaced, "all workers are ready again", _PATIENCE_S)


def _load(service: Service, bodies: Bodies, seconds: float) -> Load:
    """A closed loop, of which everything is told."""
    return Load(f"{service.process.url}/rank", bodies.path, _CLIENTS, seconds, warm_up_s=0.0, trace=True)


def _mixed_bodies(lab: Lab, sizes: Sizes) -> Bodies:
    """Rankings, among which some are refused."""
    bodies = lab.bodies([sizes.candidates], sizes.bodies)
    lines = bodies.path.read_bytes().splitlines()
    for every, wrong in _WRONG.items():
        lines[::every] = [wrong] * len(lines[::every])
    bodies.path.write_bytes(b"\n".join(lines) + b"\n")
    return bodies


def _both(lab: Lab) -> set[int]:
    return {lab.cores.service, lab.cores.others}
