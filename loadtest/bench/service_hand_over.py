"""Of `farm bench service`: what a request costs on its way between a worker and an engine process.

The unix socket carries all arrays.  Shared memory is what it is compared with: there the arrays lie in slots that both
sides map, and the socket carries only which slot to look at.  Both with the service's own code around them, and with
a scorer that answers at once, so that nothing else is measured.
"""

from __future__ import annotations

import asyncio
import ctypes
import math
import multiprocessing
import os
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import uvloop

from feature_store.matrices import UserInputs
from feature_store.view import ModelView
from loadtest.bench.cores import pinned
from loadtest.bench.memory import cpu_seconds
from loadtest.bench.service_lab import BenchError, Lab
from loadtest.bench.service_sizes import Sizes
from model.artifact.manifest import Artifact
from model.figures import claim
from model.golden import random_candidates, random_users
from service.admission.cost import CostModel
from service.scoring.process import Hello, ScorerServer
from service.scoring.remote import RemoteScorer
from service.scoring.scorer import Score
from service.scoring.wire import Layout

CANDIDATES = 200
CLIENTS = (1, 8)  # requests under way
WAYS = ("socket", "shared")

Memory = ctypes.Array[ctypes.c_longlong]  # shared by processes

_VERSION = "hand-over"
_START_S = 60.0
_MORE_BOUND_MS = 0.02  # of CPU, that the socket may cost beyond shared memory: 1 % of a request


class SharedLayout(Layout):
    """The arrays of a request, and its probabilities, lie in a slot of shared memory; a frame says in which."""

    _REQUEST = struct.Struct("<qqdq")  # slot, candidates, seconds until the deadline, 1 if the priority is low
    _ANSWER = struct.Struct("<qq")  # slot, candidates

    def __init__(self, view: ModelView, memory: Memory) -> None:
        """memory: of both sides, `slot_values` for each request under way"""
        super().__init__(view)
        self._slots = np.ctypeslib.as_array(memory).reshape(CLIENTS[-1], -1)
        self._free = list(range(len(self._slots)))
        self._read = 0  # the slot of the request that was parsed last: its answer is made before another is parsed

    @classmethod
    def slot_values(cls, view: ModelView, candidates: int) -> int:
        """Of 8 bytes, that a request and its answer need."""
        plain = Layout(view)
        return plain._user_values + candidates * plain._columns + -(-candidates * plain._tasks // 2)

    def request(self, users: UserInputs, candidates: np.ndarray, left_s: float = math.inf, low: bool = False) -> bytes:
        slot, start = self._free.pop(), 0
        for part in self._parts(users, candidates):
            self._slots[slot, start : start + part.size] = part.reshape(-1)
            start += part.size
        return self._REQUEST.pack(slot, len(candidates), left_s, low)

    def parse_request(self, body: bytes) -> tuple[UserInputs, np.ndarray, float, bool]:
        self._read, count, left_s, low = self._REQUEST.unpack(body)
        return *self._cut(self._slots[self._read, : self._end(count)]), left_s, bool(low)

    def answer(self, score: Score) -> bytes:
        count = len(score.probabilities)
        self._probabilities(self._read, count)[:] = score.probabilities
        return self._ANSWER.pack(self._read, count)

    def parse_answer(self, body: bytes) -> Score:
        slot, count = self._ANSWER.unpack(body)
        probabilities = self._probabilities(slot, count).copy()
        self._free.append(slot)
        return Score(probabilities, 0.0, 0.0, 0.0, False)

    def _end(self, candidates: int) -> int:
        """Where the arrays of a request end."""
        return self._user_values + candidates * self._columns

    def _probabilities(self, slot: int, candidates: int) -> np.ndarray:
        values: np.ndarray = self._slots[slot, self._end(candidates) :].view(np.float32)
        return values[: candidates * self._tasks].reshape(candidates, self._tasks)


class AtOnce:
    """A scorer whose probabilities are the first column of the candidates, so that both sides know them."""

    def __init__(self, tasks: int) -> None:
        self._tasks, self.costs = tasks, CostModel(1)

    async def score(
        self, users: UserInputs, candidates: np.ndarray, deadline_at: float = math.inf, low: bool = False
    ) -> Score:
        return Score(expected(candidates, self._tasks), 0.0, 0.0, 0.0, False)

    def coming(self) -> AbstractContextManager[None]:
        return nullcontext()

    async def warm_up(self) -> None:
        pass

    async def close(self) -> None:
        pass


def expected(candidates: np.ndarray, tasks: int) -> np.ndarray:
    """What `AtOnce` answers.  [C, Fc] -> [C, tasks] float32"""
    return np.repeat(candidates[:, :1].astype(np.float32), tasks, axis=1)


def hand_over(lab: Lab, sizes: Sizes) -> dict[str, Any]:
    """CPU of both sides and time of a request by way and requests under way; blocks alternate."""
    view = Artifact.open(lab.artifact).manifest.view
    with _engine_process(lab, view) as world, pinned({lab.cores.others}), asyncio.Runner(loop_factory=_loop) as runner:
        blocks: dict[tuple[str, int], list[dict[str, float]]] = {(way, n): [] for way in WAYS for n in CLIENTS}
        for number in range(sizes.rounds + 1):  # the first is not counted
            for (way, clients), found in list(blocks.items())[:: 1 if number % 2 else -1]:
                found.append(runner.run(_block(world, way, clients, sizes.linear_seconds)))
    return {
        way: {
            str(clients): {
                name: median(block[name] for block in blocks[way, clients][1:]) for name in blocks[way, 1][0]
            }
            for clients in CLIENTS
        }
        for way in WAYS
    }


def hand_over_claims(found: dict[str, Any]) -> list[dict[str, Any]]:
    more = found["socket"][str(CLIENTS[-1])]["cpu_ms"] - found["shared"][str(CLIENTS[-1])]["cpu_ms"]
    text = f"{CANDIDATES} candidates, {CLIENTS[-1]} under way: CPU ms of a hand-over by socket, beyond shared memory's"
    return [claim(text, more, "<=", _MORE_BOUND_MS)]


@dataclass(frozen=True)
class _World:
    """The other process, and how to ask it."""

    view: ModelView
    pid: int
    paths: dict[str, Path]  # of its sockets, by way
    layouts: dict[str, Layout]


@contextmanager
def _engine_process(lab: Lab, view: ModelView) -> Iterator[_World]:
    """On the service's core."""
    spawn = multiprocessing.get_context("spawn")
    memory = spawn.RawArray("q", CLIENTS[-1] * SharedLayout.slot_values(view, CANDIDATES))  # a slot for each under way
    paths = {way: lab.folder / f"{way}.sock" for way in WAYS}
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(view, memory, paths, theirs), daemon=True)
    try:
        with pinned({lab.cores.service}):
            process.start()
        if not ours.poll(_START_S):
            raise BenchError(f"the other process did not listen within {_START_S:g} s")
        assert process.pid is not None
        yield _World(view, process.pid, paths, {"socket": Layout(view), "shared": SharedLayout(view, memory)})
    finally:
        process.terminate()
        process.join()


def _serve(view: ModelView, memory: Memory, paths: dict[str, Path], ready: Connection) -> None:
    """Answer on both sockets until the process is ended."""

    async def answer() -> None:
        for way, layout in (("socket", Layout(view)), ("shared", SharedLayout(view, memory))):
            server = ScorerServer(AtOnce(len(view.tasks)), layout, Hello(_VERSION, "none"))
            await server.start(paths[way])
        ready.send(True)
        await asyncio.Event().wait()

    with asyncio.Runner(loop_factory=_loop) as runner:
        runner.run(answer())


async def _block(world: _World, way: str, clients: int, seconds: float) -> dict[str, float]:
    """One way for some seconds.  BenchError when an answer is not that of its request."""
    remote = RemoteScorer([world.paths[way]], world.layouts[way], _VERSION)
    users, candidates = random_users(world.view, [(50, 50)], seed=0), _slates(world.view)
    await remote.warm_up()
    took: list[float] = []
    pids = [os.getpid(), world.pid]
    cpu_s, ends = cpu_seconds(pids), time.perf_counter() + seconds

    async def client(first: int) -> None:
        number = first
        while (begun := time.perf_counter()) < ends:
            slate = candidates[number % len(candidates)]
            score = await remote.score(users, slate)
            took.append(time.perf_counter() - begun)
            if number < clients and not np.array_equal(score.probabilities, expected(slate, len(world.view.tasks))):
                raise BenchError(f"{way}: the answer is that of another request")
            number += clients

    try:
        await asyncio.gather(*(client(number) for number in range(clients)))
    finally:
        await remote.close()
    cpu_s = cpu_seconds(pids) - cpu_s
    return {"cpu_ms": 1000 * cpu_s / len(took), "p50_ms": 1000 * median(took), "per_second": len(took) / seconds}


def _slates(view: ModelView) -> Sequence[np.ndarray]:
    """[C, Fc] each"""
    return list(random_candidates(view, (2 * CLIENTS[-1], CANDIDATES), seed=0))


def _loop() -> asyncio.AbstractEventLoop:
    return uvloop.new_event_loop()
