"""CPU of each stage of a ranking that is no tower: what the skin around the matrix products costs.

Stages are timed alone, in turns, on one thread, over requests that differ.  That is what they cost while the core's
caches hold their code; after a run of a tower they do not, and each costs about twice as much: `evict_mb` shows it.
Letters: C candidates, T tasks.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.types import Receive, Scope

from feature_store.matrices import candidate_matrix, user_inputs
from feature_store.schema import MISSING
from feature_store.store import FeatureStore, StoreAnswer, open_store
from loadtest.bench.stages_client import post_all
from model.artifact.calibration import Calibration
from model.artifact.formula import Formula
from model.artifact.manifest import CALIBRATION, Artifact
from service.answer import Rows, json_ids, render
from service.body import read_json_body
from service.doors.limits import Limits
from service.express import express
from service.metrics import STAGES, observe_ranking
from service.parse import Query, parse_query
from service.scoring.cache import StateCache

_BODY_LIMIT = 1 << 20
_ANSWER_BYTES = 12_000  # 50 rows
_TIMING_MS = {"store": 0.112, "queue": 0.052, "user_tower": 0.421, "candidate_tower": 1.873, "total": 2.614}
_SECONDS = dict.fromkeys(STAGES, 0.0012)

Stage = Callable[[int], object]


def stage_costs(
    artifact: Path, store: str, bodies: Sequence[bytes], rounds: int = 40, evict_mb: int = 0
) -> dict[str, float]:
    """Median CPU by stage, ms of one core for a request; "total" is their sum.

    store: URL;  bodies: requests to POST /rank, 64 or more;  rounds: over all bodies;  evict_mb: of other memory that
    is read before each stage of each request, as the towers do.  No tower is run, and what hands work to the engine's
    threads is not in it; "http" is uvicorn, telemetry and the sockets, with a client elsewhere, and never evicted.
    """
    return uvloop.run(_costs(Artifact.open(artifact), store, bodies, rounds, np.zeros(evict_mb << 17)))


async def _costs(
    artifact: Artifact, url: str, bodies: Sequence[bytes], rounds: int, other: np.ndarray
) -> dict[str, float]:
    async with open_store(url) as store:
        queries = [parse_query(body, store.schema.ids) for body in bodies]
        for query in queries:  # authors are remembered from then on
            await _read(store, query)
        found = [await _read(store, query) for query in queries]
        stages = _stages(artifact, bodies, queries, found, store)
        spent: dict[str, list[float]] = {name: [] for name in ("parse", "store", *stages)}
        for _ in range(rounds):
            for name, stage in stages.items():
                spent[name].append(_cpu_ms(stage, len(bodies), other))
            spent["store"].append(await _store_cpu_ms(store, queries, other))
    costs = {"http": await _http_cpu_ms(bodies, bytes(_ANSWER_BYTES), max(3, rounds // 4))}
    costs |= {name: median(values) for name, values in spent.items()}
    return costs | {"total": sum(costs.values())}


def _stages(
    artifact: Artifact, bodies: Sequence[bytes], queries: list[Query], found: list[StoreAnswer], store: FeatureStore
) -> dict[str, Stage]:
    """What each stage does of request i."""
    view, tasks = artifact.manifest.view, artifact.manifest.view.tasks
    calibration, formula = Calibration.load(artifact.path / CALIBRATION, tasks), Formula()
    rng = np.random.default_rng(0)
    most = max(len(query.author_ids) for query in queries)
    raw = rng.uniform(0.001, 0.3, (len(queries), most, len(tasks))).astype(np.float32)  # [requests, C, T]
    kept = StateCache(artifact.version, view.lag_quantum_s, 1, 1)
    clock_ms = int(1000 * time.time())
    now = [clock_ms if query.now_ms is None else query.now_ms for query in queries]

    def inputs(i: int) -> object:
        query = queries[i]
        users = user_inputs(view, found[i].user, query.user_id, {"page": query.page or 0}, now[i])
        return users, candidate_matrix(view, query.author_ids, query.live_ids, found[i].authors)

    probabilities = [raw[i, : len(query.author_ids)] for i, query in enumerate(queries)]
    users = [user_inputs(view, found[i].user, query.user_id, {}, now[i]) for i, query in enumerate(queries)]
    scores = [formula.score(each, tasks) for each in probabilities]
    orders = [_order(scores[i], query.top_k) for i, query in enumerate(queries)]

    def answer(i: int) -> bytes:
        query, order = queries[i], orders[i]
        ids = json_ids(query.author_ids[order]), json_ids(query.live_ids[order])
        rows = Rows(*ids, scores[i][order], probabilities[i][order])
        return render("0" * 32, artifact.version, tasks, rows, [], _TIMING_MS)

    return {
        "parse": lambda i: parse_query(bodies[i], store.schema.ids),
        "inputs": inputs,
        "digest": lambda i: kept.key(users[i]),
        "calibrate": lambda i: calibration.apply(probabilities[i]),
        "formula": lambda i: formula.score(probabilities[i], tasks),
        "order": lambda i: _order(scores[i], queries[i].top_k),
        "render": answer,
        "metrics": lambda i: observe_ranking(_SECONDS, 200, 0, ()),
    }


def _order(scores: np.ndarray, top_k: int | None) -> np.ndarray:
    return np.argsort(-scores, kind="stable")[:top_k]


def _read(store: FeatureStore, query: Query) -> Awaitable[StoreAnswer]:
    live_ids = None if (query.live_ids == MISSING).all() else query.live_ids
    return store.read(query.user_id, query.author_ids, live_ids)


def _cpu_ms(stage: Stage, requests: int, other: np.ndarray) -> float:
    spent = 0.0
    for i in range(requests):
        other.sum()
        start = time.thread_time()
        stage(i)
        spent += time.thread_time() - start
    return 1000 * spent / requests


async def _store_cpu_ms(store: FeatureStore, queries: Sequence[Query], other: np.ndarray) -> float:
    spent = 0.0
    for query in queries:
        other.sum()
        start = time.thread_time()
        await _read(store, query)
        spent += time.thread_time() - start
    return 1000 * spent / len(queries)


async def _http_cpu_ms(bodies: Sequence[bytes], answer: bytes, rounds: int) -> float:
    """Of this thread, which serves a constant answer to a client in a process of its own."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(
            Starlette(),
            http=_no_op(answer),
            access_log=False,
            log_level="warning",
            lifespan="off",
            proxy_headers=False,
        )
    )
    serving = asyncio.create_task(server.serve([listener]))
    spent: list[float] = []
    ours, theirs = get_context("spawn").Pipe()
    client = get_context("spawn").Process(target=post_all, args=(listener.getsockname()[1], list(bodies), theirs))
    client.start()
    theirs.close()  # so that the end of the client ends the pipe
    try:
        for _ in range(1 + rounds):
            start = time.thread_time()
            ours.send(True)
            requests = await asyncio.to_thread(ours.recv)
            spent.append(1000 * (time.thread_time() - start) / requests)
        ours.send(False)
        await asyncio.to_thread(client.join)
    finally:
        client.kill()
        server.should_exit = True
        await serving
    return median(spent[1:])  # the first round waits for the client to start


def _no_op(answer: bytes) -> Any:
    """The protocol of service.app, with a ranking that costs nothing."""

    async def post(scope: Scope, receive: Receive, request_id: str) -> bytes:
        await read_json_body(scope, receive, _BODY_LIMIT)
        return answer

    return express(Limits(), "/rank", post)
