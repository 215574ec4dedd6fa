"""Of `farm bench store`: how fast one worker merges a full log, and how soon an event is visible under steady traffic.

The worker is a real `farm ingest --worker`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from feature_store.events.batch import EventBatch
from feature_store.events.log import EventLog
from feature_store.records import known_at
from feature_store.redis.store import RedisStore
from loadtest.bench.event_processes import Child, running
from loadtest.bench.store_load import server_cpu_s

GIVE_UP_S = 60.0  # a worker that has not begun, or a view that is not visible, by then
CHECKED_USERS = 200

_LOOK_S = 0.05  # at the log while it is merged
_POLL_S = 0.002  # for a view
_CPU = ("server", "worker", "this_process")

Times = list[tuple[float, float]]
"""Of requests: when each was due and when it was accepted, or seen [s, by the event loop's clock]."""


async def merge_rates(url: str, store: RedisStore, rounds: Sequence[Sequence[EventBatch]]) -> dict[str, Any]:
    """Events/s of one worker that finds the requests of a round in the log; and what of the last is not there."""
    log = EventLog(store.link, store.schema)
    measured = [await _drain(url, store, log, requests) for requests in rounds]
    rates = [row["events_per_s"] for row in measured]
    told = await log.stats()
    missing = await _missing(store, rounds[-1][-1])
    return {"rounds": measured, "median": median(rates), "dead_letters": told["dead_letters"], "missing": missing}


async def freshness(
    url: str, store: RedisStore, requests: Sequence[EventBatch], every_s: float, sample_every: int
) -> dict[str, Any]:
    """ms from when a request was due until a read of the user shows its last video view; of some requests.

    Requests are sent when they are due, whether earlier ones are answered or not; what is sent late counts as late.
    """
    log = EventLog(store.link, store.schema)
    with _worker(url) as worker:
        await log.append(requests[0])
        await _seen_at(store, requests[0])  # the worker is up, and every path was gone once
        cpu = await _cpu_s(store, worker)
        sent, seen = await _send_all(store, log, requests[1:], every_s, sample_every)
        cpu = await _cpu_s(store, worker) - cpu
    seconds = max(done for _, done in sent) - sent[0][0]
    visible = [1000 * (at - due) for due, at in seen]
    return {
        "events_per_s": sum(map(len, requests[1:])) / seconds,
        "append_ms": _percentiles([1000 * (done - due) for due, done in sent]),
        "visible_ms": _percentiles(visible),
        "each_visible_ms": [round(delay, 2) for delay in visible],
        "cpu_share": _shares(cpu, seconds),
    }


def _worker(url: str) -> AbstractContextManager[Child]:
    return running("farm", "ingest", "--store", url, "--worker", environment={})


async def _drain(url: str, store: RedisStore, log: EventLog, requests: Sequence[EventBatch]) -> dict[str, Any]:
    """From the last look at which nothing was merged to the first at which all was."""
    for request in requests:
        await log.append(request)
    waiting = left = sum((await log.lag()).values())
    with _worker(url) as worker:
        began, cpu, gives_up = 0.0, np.zeros(len(_CPU)), time.perf_counter() + GIVE_UP_S
        while left:
            if left == waiting:
                began, cpu = time.perf_counter(), await _cpu_s(store, worker)
            if worker.process.poll() is not None or (left == waiting and began > gives_up):
                raise worker.failed(f"the worker left {left} entries of the log alone")
            await asyncio.sleep(_LOOK_S)
            left = sum((await log.lag()).values())
        seconds = time.perf_counter() - began
        cpu = await _cpu_s(store, worker) - cpu
    events = sum(map(len, requests))
    rate = events / seconds
    return {"events": events, "entries": waiting, "events_per_s": rate, "cpu_share": _shares(cpu, seconds)}


async def _missing(store: RedisStore, request: EventBatch) -> int:
    """Of how many users of the newest request the newest video view is not in the history."""
    missing = 0
    newest = np.argsort(known_at(request.video), kind="stable")
    views = dict(zip(request.video_users[newest].tolist(), request.video["view_id"][newest].tolist(), strict=True))
    for user, view in list(views.items())[:CHECKED_USERS]:
        missing += not await _is_visible(store, user, view)
    return missing


async def _send_all(
    store: RedisStore, log: EventLog, requests: Sequence[EventBatch], every_s: float, sample_every: int
) -> tuple[Times, Times]:
    """When all requests were accepted, and the sampled ones seen."""
    loop = asyncio.get_running_loop()
    start = loop.time() + every_s
    sent, seen = [], []
    async with asyncio.TaskGroup() as tasks:
        for number, request in enumerate(requests):
            due = start + number * every_s
            await asyncio.sleep(due - loop.time())
            sent.append((due, tasks.create_task(_accepted_at(log, request))))
            if number % sample_every == 0:
                seen.append((due, tasks.create_task(_seen_at(store, request))))
    return [(due, task.result()) for due, task in sent], [(due, task.result()) for due, task in seen]


async def _accepted_at(log: EventLog, request: EventBatch) -> float:
    await log.append(request)
    return asyncio.get_running_loop().time()


async def _seen_at(store: RedisStore, request: EventBatch) -> float:
    """When a read shows the last video view of a request.  TimeoutError when none does."""
    user, view = int(request.video_users[-1]), int(request.video["view_id"][-1])
    async with asyncio.timeout(GIVE_UP_S):
        while not await _is_visible(store, user, view):
            await asyncio.sleep(_POLL_S)
    return asyncio.get_running_loop().time()


async def _is_visible(store: RedisStore, user: int, view: int) -> bool:
    found = (await store.read(user, ())).user
    return found is not None and bool((found.video["view_id"] == view).any())


async def _cpu_s(store: RedisStore, worker: Child) -> np.ndarray:
    """CPU that each of _CPU has used so far."""
    ticks = Path(f"/proc/{worker.process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    worker_s = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
    return np.array([await server_cpu_s(store), worker_s, time.process_time()])


def _shares(cpu: np.ndarray, seconds: float) -> dict[str, float]:
    """Of a core."""
    return {name: float(used / seconds) for name, used in zip(_CPU, cpu, strict=True)}


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    return {f"p{rank}": float(np.percentile(values, rank)) for rank in (50, 99, 100)}
