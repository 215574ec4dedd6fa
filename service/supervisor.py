"""The parent of the workers, and of the engine processes: starts them, replaces those that end, stops them together."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import forkserver, get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import Literal

from service.accept import CLOSED, Loads
from service.engine_worker import work_engine
from service.settings import Settings
from service.tasks import EngineProcesses, EngineTask, News, Task
from service.worker import work

_KILL_AFTER_S = 5.0  # beyond the drain timeout
_ASK_AGAIN_S = 0.5  # a worker that is just being forked does not hear the first time
_UNKNOWN_EXIT = 255  # multiprocessing's, when the process that forks was killed: the worker may live


@dataclass(frozen=True)
class Backoff:
    """How long a worker's place stays empty after its worker ended."""

    first_s: float = 1.0  # so that a worker that dies at once does not keep the machine busy
    most_s: float = 30.0
    calm_s: float = 60.0  # a worker that was ready for as long has begun anew

    def pause_s(self, ends: int) -> float:
        """ends: in a row, 1 or more."""
        return float(min(self.first_s * 2 ** min(ends - 1, 30), self.most_s))

    def ends(self, before: int, ready_s: float) -> int:
        """In a row, with this one, of a worker that was ready for `ready_s`."""
        return 1 if ready_s >= self.calm_s else before + 1


Role = Literal["engine", "worker"]


@dataclass(eq=False)
class Place:
    """A process, and those that stood in its place before."""

    role: Role
    number: int  # of its role, from 0
    process: BaseProcess | None = None  # None: it has ended, another is started at `due`
    news: Connection | None = None  # of a process that is starting
    ready_at: float | None = None  # time.monotonic()
    model_version: str = ""
    provider: str = ""  # in use, of an engine process
    failure: str | None = None
    ends: int = 0  # in a row
    restarts: int = 0
    due: float = 0.0  # time.monotonic()

    def hear(self) -> None:
        """Take the worker's news, or the end of it."""
        assert self.news is not None
        assert self.process is not None
        try:
            news: News = self.news.recv()
        except EOFError:
            self.process.join(_KILL_AFTER_S)
            news = News(f"a process ({self.role}) ended with {self.process.exitcode} before it was ready")
        self.failure, self.model_version, self.provider = news.failure, news.model_version, news.provider
        self.ready_at = None if news.failure else time.monotonic()
        self.news.close()
        self.news = None


@dataclass
class Supervisor:
    """Runs `settings.workers` processes on one listening socket, and the engine processes that they ask."""

    settings: Settings
    listener: socket.socket  # bound
    folder: Path  # empty: for what the processes share
    on_ready: Callable[[], None]  # called once, when every worker answers
    on_end: Callable[[int], None]  # with the id of a process that has ended
    backoff: Backoff = field(default_factory=Backoff)

    def __post_init__(self) -> None:
        self._context = _worker_context()
        self._loads_file = self.folder / "connections"
        self._loads = Loads.create(self._loads_file, self.settings.workers)
        self._engines = [Place("engine", number) for number in range(self.settings.engine_processes)]
        self.places = [*self._engines, *(Place("worker", number) for number in range(self.settings.workers))]
        self._signals, self._announced = 0, False
        self._woken, self._wake = self._context.Pipe(duplex=False)

    @property
    def stopping(self) -> bool:
        return self._signals > 0

    def run(self) -> int:
        """Until SIGTERM or SIGINT; the exit code.  1 when a worker cannot start, or had to be killed, with why."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        try:
            status = self._watch()
        finally:
            left = self._end()
        return fail(left) if left else status

    def _on_signal(self, *_: object) -> None:
        self._signals += 1
        self._wake.send(None)

    def _watch(self) -> int:
        while not self.stopping:
            self._start_due()
            self._wait()
            failures = [place.failure for place in self.places if place.failure]
            if failures and not self._announced and not self.stopping:
                return fail(failures[0])
            if not self._announced and all(place.ready_at is not None for place in self.places):
                self._announced = True
                self.on_ready()
            self._clear_ended()
        return 0

    def _absent(self) -> list[Place]:
        """Those to be started when they are due: engine processes, and workers once all of those answer."""
        answering = all(place.ready_at is not None for place in self._engines)
        return [place for place in self.places if place.process is None and (answering or place.role == "engine")]

    def _start_due(self) -> None:
        for place in self._absent():
            if place.due <= time.monotonic() and not self.stopping:
                self._start(place)

    def _start(self, place: Place) -> None:
        news, tell = self._context.Pipe(duplex=False)
        process = self._process(place, tell)
        with _no_main_module():
            process.start()
        tell.close()  # so that the end of the worker ends the pipe
        place.news, place.failure, place.ready_at, place.process = news, None, None, process

    def _process(self, place: Place, tell: Connection) -> BaseProcess:
        if place.role == "engine":
            engine = EngineTask(self.settings, place.number, self._socket(place))
            return self._context.Process(target=work_engine, args=(engine, tell))
        engines = EngineProcesses(tuple(map(self._socket, self._engines)), _provider(self._engines))
        task = Task(self.settings, place.number, self.listener, self._loads_file, engines if self._engines else None)
        return self._context.Process(target=work, args=(task, tell))

    def _socket(self, engine: Place) -> Path:
        return self.folder / f"engine-{engine.number}"

    def _wait(self) -> None:
        """Until a process is ready, fails or ends, or is to be started, or the service is told to stop."""
        starting = {place.news: place for place in self.places if place.news is not None}
        due = [place.due for place in self._absent()]
        pause = max(0.0, min(due) - time.monotonic()) if due else None
        for event in wait([self._woken, *starting, *_sentinels(self.places)], pause):
            if isinstance(event, Connection) and event in starting:
                starting[event].hear()

    def _clear_ended(self) -> None:
        for place in self.places:
            if place.process is not None and place.process.exitcode is not None and not self.stopping:
                self._clear(place, place.process)

    def _clear(self, place: Place, process: BaseProcess) -> None:
        """Make room for another worker, after a pause."""
        assert process.pid is not None
        if process.exitcode == _UNKNOWN_EXIT:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)
        now = time.monotonic()
        place.ends = self.backoff.ends(place.ends, 0.0 if place.ready_at is None else now - place.ready_at)
        pause = self.backoff.pause_s(place.ends)
        reason = place.failure or f"{place.role} {process.pid} ended with {process.exitcode}"
        again = f", {place.ends} ends in a row" if place.ends > 1 else ""
        fail(f"{reason}; starting another in {pause:g} s{again}")
        if place.role == "worker":
            self._loads.set(place.number, CLOSED)
        self.on_end(process.pid)
        place.restarts += 1
        place.due, place.process, place.news, place.ready_at = now + pause, None, None, None

    def _end(self) -> str:
        """Stop all workers, then the engines; what is to be said of it, if they had to be killed."""
        self.listener.close()  # so that the last worker to close its own makes the port refuse
        deadline = time.monotonic() + self.settings.drain_timeout_s + _KILL_AFTER_S
        workers = [place for place in self.places if place.role == "worker"]
        return self._stop(workers, deadline) or self._stop(self._engines, deadline)

    def _stop(self, places: list[Place], deadline: float) -> str:
        """deadline: time.monotonic()"""
        told: set[Place] = set()
        while alive := [place for place in places if place.process is not None and place.process.is_alive()]:
            late = time.monotonic() > deadline
            if late or self._signals > 1:
                _signal(alive, signal.SIGKILL)
                why = f"after {self.settings.drain_timeout_s} s of draining" if late else "at the second signal"
                role = alive[0].role
                number = f"1 {role} was" if len(alive) == 1 else f"{len(alive)} {role}s were"
                return f"{number} killed {why}; requests under way are lost"
            _signal([p for p in alive if p.ready_at is None or p not in told], signal.SIGTERM)
            told.update(alive)
            if self._woken in wait([self._woken, *_sentinels(alive)], _ASK_AGAIN_S):
                self._woken.recv()
        return ""


def fail(message: str) -> int:
    """Say it in one line; the exit code."""
    print(f"farm serve: {message}", file=sys.stderr, flush=True)
    return 1


def _provider(engines: list[Place]) -> str:
    """Of all of them: they have the same order of fallback, and one that fell back says so."""
    return "+".join(sorted({engine.provider for engine in engines}))


def _sentinels(places: list[Place]) -> list[int]:
    return [place.process.sentinel for place in places if place.process is not None]


def _signal(places: list[Place], number: signal.Signals) -> None:
    for place in places:
        if place.process is not None and place.process.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(place.process.pid, number)


def _worker_context() -> ForkServerContext | SpawnContext:
    """Workers are forked by a process that has imported all they need; where fork is unsafe (macOS), started anew."""
    if sys.platform != "linux":
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(["service.preload"])
    forkserver.ensure_running()  # it imports in the background from now on
    return context


@contextmanager
def _no_main_module() -> Iterator[None]:
    """multiprocessing would import the command line, with all its verbs, in every worker."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
