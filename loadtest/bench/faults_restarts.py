"""Of `farm bench faults`: instances that are restarted in turn, and a worker that is killed."""

from __future__ import annotations

import os
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest.bench.cores import pinned
from loadtest.bench.faults_answers import wrong_answers
from loadtest.bench.faults_lab import Ground, unanswered
from loadtest.bench.service_lab import Service
from loadtest.load.trace import NO_ANSWER, Trace
from loadtest.process import PATIENT, ServiceProcess
from loadtest.proxy import TcpProxy, tcp_proxy
from loadtest.redis_servers import wait_until
from model.figures import claim

WORKERS = 4
BACK_S = 5.0  # for a worker to be replaced

_ROLLING_LOAD, _KILL_LOAD = 0.3, 0.5  # of the saturation of a core
_ROUND_S = 60.0  # at most, of a restart
_HEALTH_S = 0.1  # between two looks at who is ready
_PATIENCE_S = 60.0
_ROLLING: dict[str, Any] = {**PATIENT, "FARM_GRACE_S": "3"}
"""Environment: a grace period in which every connection that clients keep is used, and so told to end; and nobody is
refused, because here both instances share one core with the start of the next, which a fleet's do not.
"""


def rolling(ground: Ground) -> dict[str, Any]:
    """Two instances behind a proxy that sends new connections to those that are ready; each is restarted."""
    bodies, lab = ground.bodies(), ground.lab
    store = lab.store("lmdb")
    with ExitStack() as first, ExitStack() as second:
        stacks = [first, second]
        running = [stack.enter_context(lab.another(store, **_ROLLING)) for stack in stacks]
        rate = _ROLLING_LOAD * ground.peak(running[0], "lmdb")
        with pinned({lab.cores.others}), tcp_proxy(_port(running[0])) as proxy, _balanced(proxy, running):
            url = f"http://127.0.0.1:{proxy.port}"
            with ground.loading(url, bodies, 2 * _ROUND_S, rate) as load:
                statuses = [_restart(ground, store, stacks, running, place) for place in (0, 1)]
                load.stop()
                result = load.result()
    return {
        "rate": rate,
        "exit_statuses": statuses,
        "statuses": result.statuses,
        "errors": unanswered(result),
        "max_ms": result.max_ms,
        "p99_ms": result.p99_ms,
        "wrong_answers": wrong_answers(result, bodies.path.read_bytes().splitlines())[:3],
    }


def rolling_claims(found: dict[str, Any]) -> list[dict[str, Any]]:
    errors = found["errors"] + len(found["wrong_answers"])
    return [
        claim("rolling restart of two instances: requests that failed", errors, "<=", 0),
        claim("rolling restart of two instances: exit status", max(found["exit_statuses"]), "<=", 0),
    ]


def _restart(ground: Ground, store: str, stacks: list[ExitStack], running: list[Service], place: int) -> int:
    """The exit status of the instance that was in the place."""
    time.sleep(ground.sizes.around_s)
    status = running[place].process.stop()
    stacks[place].close()
    running[place] = stacks[place].enter_context(ground.lab.another(store, **_ROLLING))
    time.sleep(ground.sizes.around_s)
    return status


@contextmanager
def _balanced(proxy: TcpProxy, running: list[Service]) -> Iterator[None]:
    """While this lasts, the proxy's new connections go to the instances whose /readyz says 200."""
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            if ready := [_port(service) for service in tuple(running) if _is_ready(service.process)]:
                proxy.send_to(*ready)
            ended.wait(_HEALTH_S)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _is_ready(service: ServiceProcess) -> bool:
    try:
        with urllib.request.urlopen(f"{service.url}/readyz", timeout=1) as response:
            return bool(response.status == 200)
    except OSError:  # an HTTPError is one too
        return False


def _port(service: Service) -> int:
    return int(service.process.url.rpartition(":")[2])


def kill(ground: Ground) -> dict[str, Any]:
    """kill -9 of one of four workers, again and again."""
    bodies, lab, sizes = ground.bodies(), ground.lab, ground.sizes
    both = {lab.cores.service, lab.cores.others}
    with lab.another(lab.store("lmdb"), "--workers", str(WORKERS), cpus=both) as service:
        rate = _KILL_LOAD * ground.peak(service, "four workers")
        with ground.loading(service.process.url, bodies, sizes.kills * _ROUND_S, rate) as load:
            killed = [_kill(service, number, sizes.around_s) for number in range(sizes.kills)]
            load.stop()
            result = load.result()
    trace = result.traced()
    lost = trace.only(lambda kind: kind.status == NO_ANSWER)
    return {
        "rate": rate,
        "statuses": result.statuses,
        "in_flight": sum(len(_in_flight(trace, one)) for one in killed),
        "lost": len(lost),
        "lost_beyond": len(lost) - sum(len(_in_flight(lost, one)) for one in killed),
        "failed_otherwise": unanswered(result) - len(lost),
        "back_s": [one.back_s for one in killed],
    }


def kill_claims(found: dict[str, Any]) -> list[dict[str, Any]]:
    text = f"kill -9 of one of {WORKERS} workers: "
    return [
        claim(text + "requests lost that it did not have", found["lost_beyond"], "<=", 0),
        claim(text + "requests that failed otherwise", found["failed_otherwise"], "<=", 0),
        claim(text + f"s until there are {WORKERS} again", max(found["back_s"]), "<=", BACK_S),
    ]


@dataclass(frozen=True)
class Killed:
    """Times are of time.perf_counter."""

    at: float
    dead: float  # its connections are closed
    back_s: float  # until all were ready again


def _kill(service: Service, number: int, around_s: float) -> Killed:
    time.sleep(around_s)
    victim = service.pids()[number % WORKERS]
    at = time.perf_counter()
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: not _lives(victim), "the worker is dead", _PATIENCE_S)
    dead = time.perf_counter()
    wait_until(lambda: _all_ready(service, victim), "all workers are ready again", _PATIENCE_S)
    back_s = time.perf_counter() - at
    time.sleep(around_s)
    return Killed(at, dead, back_s)


def _lives(pid: int) -> bool:
    """Neither gone nor a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _all_ready(service: Service, victim: int) -> bool:
    workers = service.process.workers()
    return len(workers) == WORKERS and all(w["state"] == "ready" and w["pid"] != victim for w in workers)


def _in_flight(trace: Trace, killed: Killed) -> Trace:
    """Requests that were sent before and not yet answered."""
    return trace.where((trace.sent <= killed.dead) & (trace.done >= killed.at))
