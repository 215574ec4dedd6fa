"""Of `farm bench faults`: what rankings say while the store's server, or the way to it, fails under load."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from loadtest.bench.cores import pinned
from loadtest.bench.faults_answers import is_good, lacks_history, lacks_store, wrong_answers
from loadtest.bench.faults_lab import Ground, service_ms
from loadtest.bench.service_stores import fill
from loadtest.load.trace import Kind, Trace
from loadtest.proxy import TcpProxy, tcp_proxy
from loadtest.redis_servers import Server, valkey
from model.figures import claim

LOAD = 0.4  # of saturation, as the store's server, the proxy and the load generator share a core
SEEN_S = 60.0  # users who were answered so shortly before a fault have a last good history
BACK_S = 2.0  # within which all is whole again
LEAK = 40  # bytes of a reply that pass before a partition

_GRACE_MS = 20
_REPEAT_BOUND = 0.95


@dataclass(frozen=True)
class Place:
    """The store's server and what lies before it."""

    server: Server
    proxy: TcpProxy


@dataclass(frozen=True)
class Fault:
    """Done to the store under load."""

    name: str
    begin: Callable[[Place], object]
    end: Callable[[Place], object]


@dataclass(frozen=True)
class Course:
    """When a fault was.  Times are of time.perf_counter."""

    name: str
    calm: float  # since when all had been whole, or should have
    begin: float
    end: float
    until: float  # the next one may begin


def _start_again(place: Place) -> None:
    place.server.start()
    place.server.wait()


def _nothing(_: Place) -> None:
    pass


FAULTS = (
    Fault("stalled", lambda place: place.proxy.stall(), lambda place: place.proxy.heal()),
    Fault("killed", lambda place: place.server.kill(), _start_again),
    Fault("restarted", lambda place: place.server.restart(), _nothing),
    Fault("garbage", lambda place: place.proxy.corrupt(1.0, "to_client"), lambda place: place.proxy.heal()),
    Fault("partitioned", lambda place: _partition(place.proxy), lambda place: place.proxy.heal()),
)


def _partition(proxy: TcpProxy) -> None:
    """In the middle of a reply."""
    proxy.stall("to_client", leak=LEAK)
    proxy.stall("to_server")


def redis(ground: Ground, faults: Sequence[Fault] = FAULTS) -> dict[str, Any]:
    """One load, the faults one after another, and what became of the requests around each."""
    sizes, bodies = ground.sizes, ground.bodies()
    with store_place(ground) as place, ground.lab.another(f"redis://127.0.0.1:{place.proxy.port}") as service:
        rate = LOAD * ground.peak(service, "redis")
        seconds = sizes.fill_s + len(faults) * (sizes.hold_s + sizes.quiet_s + 3)
        headers = {"X-Deadline-Ms": str(sizes.deadline_ms)}
        with ground.loading(service.process.url, bodies, seconds, rate, headers=headers) as load:
            courses = _courses(place, ground, faults)
            load.stop()
            result = load.result()
    lines = bodies.path.read_bytes().splitlines()
    users = np.array([_user(line) for line in lines])
    return {
        "rate": rate,
        "deadline_ms": sizes.deadline_ms,
        "never_answered": result.errors,
        "wrong_answers": wrong_answers(result, lines)[:3],
        "faults": {course.name: verdict(result.traced(), users, course, sizes.deadline_ms) for course in courses},
    }


@contextmanager
def store_place(ground: Ground) -> Iterator[Place]:
    """A server with users, on the core of the load generator; when it starts again it has them still."""
    with pinned({ground.lab.cores.others}), valkey() as server, tcp_proxy(server.port) as proxy:
        asyncio.run(fill(server.url, ground.sizes.users))
        with server.client() as client:
            client.save()
        yield Place(server, proxy)


def _courses(place: Place, ground: Ground, faults: Sequence[Fault]) -> list[Course]:
    sizes, courses = ground.sizes, []
    calm = time.perf_counter() + sizes.fill_s / 2
    time.sleep(sizes.fill_s)
    for fault in faults:
        begin = time.perf_counter()
        fault.begin(place)
        if fault.end is not _nothing:
            time.sleep(sizes.hold_s)
        fault.end(place)
        end = time.perf_counter()
        courses.append(Course(fault.name, calm, begin, end, end + sizes.quiet_s))
        time.sleep(sizes.quiet_s)
        calm = end + BACK_S
    return courses


def verdict(trace: Trace, users: np.ndarray, course: Course, deadline_ms: int) -> dict[str, Any]:
    """What became of the requests before, during and after a fault.  users: of each body."""
    around, during = trace.between(course.begin, course.end + BACK_S), trace.between(course.begin, course.end)
    before = trace.between(course.begin - SEEN_S, course.begin).only(_is_whole)
    repeats = during.where(np.isin(users[during.body], users[before.body]))
    after = _within(trace, course.end, course.until).only(lacks_store)
    calm = _within(trace, course.calm, course.begin)
    ms = service_ms(around)
    return {
        "lasted_s": course.end - course.begin,
        "requests": len(around),
        "statuses": around.statuses(),
        "slowest_ms": float(ms.max(initial=0.0)),
        "late": int((ms > deadline_ms + _GRACE_MS).sum()),
        "refused": len(around) - len(around.only(is_good)),
        "repeats": len(repeats),
        "repeat_share": _share(repeats, lambda kind: is_good(kind) and not lacks_history(kind)),
        "words": _words(during),
        "back_s": float((after.due - course.end).max(initial=0.0)),
        "calm_requests": len(calm),
        "calm_degraded": len(calm.only(lacks_store)),
    }


def redis_claims(found: dict[str, Any]) -> list[dict[str, Any]]:
    claims = []
    for name, figures in found["faults"].items():
        text = f"Redis {name}: "
        claims += [
            claim(text + "requests not answered with 200", figures["refused"], "<=", 0),
            claim(text + f"answers later than their deadline + {_GRACE_MS} ms", figures["late"], "<=", 0),
            claim(text + "share of repeat users with a history", figures["repeat_share"], ">=", _REPEAT_BOUND),
            claim(text + "degraded answers while the store was healthy", figures["calm_degraded"], "<=", 0),
            claim(text + "s until all answers were whole again", figures["back_s"], "<=", BACK_S),
        ]
    text = "wrong or missing answers under faults of Redis"
    return [*claims, claim(text, len(found["wrong_answers"]) + found["never_answered"], "<=", 0)]


def _within(trace: Trace, start: float, end: float) -> Trace:
    """Requests that began and ended in that time."""
    return trace.where((trace.due >= start) & (trace.done < end))


def _is_whole(kind: Kind) -> bool:
    return is_good(kind) and not lacks_store(kind)


def _share(trace: Trace, holds: Callable[[Kind], bool]) -> float | None:
    return len(trace.only(holds)) / len(trace) if len(trace) else None


def _words(trace: Trace) -> dict[str, int]:
    """Answers by what they say they lack."""
    words = sorted({word for kind in trace.kinds for word in kind.degraded})
    return {word: len(trace.only(partial(_says, word))) for word in words}


def _says(word: str, kind: Kind) -> bool:
    return word in kind.degraded


def _user(line: bytes) -> int:
    return int(line.split(b'"user_id":', 1)[1].split(b",", 1)[0])
