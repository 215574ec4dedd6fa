"""Of `farm bench faults`: one request among many that makes the engine fail, or its own answer NaN."""

from __future__ import annotations

import json
import os
import signal
import socket
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from http.client import HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import orjson

from loadtest.bench.faults_answers import wrong_answer
from loadtest.bench.faults_artifacts import Poison, poisoned
from loadtest.bench.faults_lab import Ground
from loadtest.bench.service_lab import Service
from loadtest.bench.service_stores import AUTHORS, NOW_MS
from loadtest.bench.store_data import author_ids, user_ids
from model.figures import claim

REQUESTS = 64
POISONS: tuple[Poison, ...] = ("fails", "nan")

_CANDIDATES = 10  # few, so that all requests fit into one batch
_TILES = REQUESTS * 5  # each costs a tile and a run of the user tower
_GUILTY = 424_242  # an author whom nobody knows
_MORE = 4  # times that it is tried again until the guilty shares a batch
_FAILURES = "farm_batch_failures_total"
_TIMEOUT_S = 30.0
_HEAD = b"POST /rank HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


def poison(ground: Ground) -> dict[str, Any]:
    """By what the poison does: statuses of requests that come together, one of them poisoned."""
    return {how: _batches(ground, how) for how in POISONS}


def _batches(ground: Ground, how: Poison) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        artifact = poisoned(ground.lab.artifact, Path(folder), _GUILTY, how)
        serving = ground.lab.another(ground.lab.store("lmdb"), artifact=artifact, FARM_BATCH_TILES=str(_TILES))
        with serving as service:
            before = service.metric(_FAILURES)
            found = [_batch(service, number) for number in range(ground.sizes.batches)]
            while how == "fails" and len(found) < ground.sizes.batches + _MORE and not _halved(service, before):
                found.append(_batch(service, len(found)))  # the guilty had a batch of its own: nothing is shown yet
            after = service.metric(_FAILURES)
    return {
        "guilty": [statuses[0] for statuses, _ in found],
        "innocent": dict(Counter(status for statuses, _ in found for status in statuses[1:])),
        "wrong_answers": [wrong for _, wrongs in found for wrong in wrongs][:3],
        "batch_failures": {name: after[name] - before.get(name, 0.0) for name in after},
    }


def _halved(service: Service, before: Mapping[str, float]) -> bool:
    return service.metric(_FAILURES).get("halved", 0.0) > before.get("halved", 0.0)


def _batch(service: Service, number: int) -> tuple[list[int], list[str]]:
    """Statuses, of the guilty request first; what is wrong with the good answers of the others."""
    rng = np.random.default_rng(number)
    bodies = [_body(rng, number, place) for place in range(REQUESTS)]
    guilty = (REQUESTS // 2 + number * 13) % REQUESTS  # the first to be read may be scored before the second
    bodies[guilty]["candidates"][3] = _GUILTY
    answers = _together(service, [orjson.dumps(body) for body in bodies])
    guilty_status, _ = answers.pop(guilty)
    bodies.pop(guilty)
    good = [(body, text) for body, (status, text) in zip(bodies, answers, strict=True) if status == 200]
    found = [wrong_answer(body, json.loads(text)) for body, text in good]
    return [guilty_status, *(status for status, _ in answers)], [wrong for wrong in found if wrong is not None]


def _together(service: Service, bodies: Sequence[bytes]) -> list[tuple[int, bytes]]:
    """Statuses and answers of requests that have all come before the worker reads the first."""
    parts, (worker,) = urlsplit(service.process.url), service.pids()
    with ExitStack() as stack:
        address = parts.hostname or "127.0.0.1", parts.port or 80
        links = [stack.enter_context(socket.create_connection(address, _TIMEOUT_S)) for _ in bodies]
        os.kill(worker, signal.SIGSTOP)
        try:
            for link, body in zip(links, bodies, strict=True):
                link.sendall(_HEAD % len(body) + body)
        finally:
            os.kill(worker, signal.SIGCONT)
        return [_answer(link) for link in links]


def _answer(link: socket.socket) -> tuple[int, bytes]:
    response = HTTPResponse(link)
    response.begin()
    return response.status, response.read()


def _body(rng: np.random.Generator, number: int, place: int) -> dict[str, Any]:
    """Of another user and time each, so that no state is kept."""
    candidates: Sequence[int] = rng.choice(author_ids(AUTHORS), _CANDIDATES, replace=False).tolist()
    now_ms = NOW_MS + 3_600_000 * (1 + number * REQUESTS + place)
    return {"user_id": int(user_ids(REQUESTS)[place]), "candidates": candidates, "now_ms": now_ms}


def poison_claims(found: dict[str, Any]) -> list[dict[str, Any]]:
    claims = []
    for how, figures in found.items():
        text = f"a request among {REQUESTS} that {'makes the engine fail' if how == 'fails' else 'gives NaN'}: "
        failed = sum(count for status, count in figures["innocent"].items() if status != 200)
        answered = sum(status < 500 for status in figures["guilty"])
        if how == "fails":
            claims.append(claim(text + "batches that were halved", figures["batch_failures"].get("halved"), ">", 0))
        claims += [
            claim(text + "others that failed", failed + len(figures["wrong_answers"]), "<=", 0),
            claim(text + "times that it was answered as if good", answered, "<=", 0),
        ]
    return claims
