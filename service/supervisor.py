"""The parent of the workers, and of the engine processes: starts them, replaces those that end, stops them together.

It also carries out changes of what serves, which another thread asks for (service.lifecycle.fleet).
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from service.accept import CLOSED, Loads
from service.engine_worker import work_engine
from service.lifecycle.fleet import Fleet
from service.lifecycle.places import Backoff, Place
from service.lifecycle.pulses import Pulse, Pulses
from service.lifecycle.settings import LifecycleSettings
from service.lifecycle.spawn import Spawner
from service.settings import Settings
from service.tasks import EngineProcesses, EngineTask, News, Order, Task
from service.worker import work

_KILL_AFTER_S = 5.0  # beyond the grace period and the drain timeout
_ASK_AGAIN_S = 0.5  # a worker that is just being forked does not hear the first time
_UNKNOWN_EXIT = 255  # multiprocessing's, when the process that forks was killed: the worker may live
_LOOK_S = 1.0  # at the pulses of the processes
_PAUSED_S = 5.0  # between two turns: this process was stopped meanwhile, and so perhaps were the others

_log = logging.getLogger(__name__)


@dataclass
class Supervisor:
    """Runs `settings.workers` processes on one listening socket, and the engine processes that they ask."""

    settings: Settings
    lifecycle: LifecycleSettings
    order: Order  # what serves first
    listener: socket.socket  # bound
    folder: Path  # empty: for what the processes share
    on_ready: Callable[[], None]  # called once, when every worker answers
    on_end: Callable[[int], None]  # with the id of a process that has ended
    backoff: Backoff = field(default_factory=Backoff)

    def __post_init__(self) -> None:
        self._spawner = Spawner()
        self._loads_file, self._pulses_file = self.folder / "connections", self.folder / "pulses"
        self._loads = Loads.create(self._loads_file, self.settings.workers)
        self.pulses = Pulses.create(self._pulses_file, self.settings.workers + self.settings.engine_processes)
        self._engines = [Place("engine", number) for number in range(self.settings.engine_processes)]
        self._workers = [Place("worker", number) for number in range(self.settings.workers)]
        self.places = [*self._engines, *self._workers]
        self._signals, self._announced = 0, False
        self._looked_at = time.monotonic()  # the last turn
        self._awake_at = self._looked_at  # since when there was no pause between turns
        self._woken, self._wake = self._spawner.pipe()
        self.fleet = Fleet(self.order, self.places, lambda: self._wake.send(None))

    @property
    def stopping(self) -> bool:
        return self._signals > 0

    def wedged(self) -> list[Place]:
        """Processes that have made no progress for `wedged_s`, while this one has."""
        now, most = time.monotonic(), self.lifecycle.wedged_s
        if now - self._awake_at < most:
            return []
        ready = [place for place in self.places if place.ready_at is not None]
        return [place for place in ready if self.pulses.get(self._row(place)).stuck_s(now) > most]

    def worker_pulses(self) -> list[Pulse]:
        """Of each worker, now."""
        return [self.pulses.get(place.number) for place in self._workers]

    def _row(self, place: Place) -> int:
        """Of its pulse."""
        return place.number + (self.settings.workers if place.role == "engine" else 0)

    def run(self) -> int:
        """Until SIGTERM or SIGINT; the exit code.  1 when a worker cannot start, or had to be killed, with why."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        try:
            status = self._watch()
        finally:
            self.fleet.close()
            left = self._end()
        if left:
            _log.error("%s", left)
            return 1
        return status

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
            self._kill_wedged()
            self._clear_ended()
            for place in self.fleet.step():
                _signal([place], signal.SIGKILL)
        return 0

    def _absent(self) -> list[Place]:
        """Those to be started when they are due: engine processes, and workers once all of those answer."""
        answering = all(place.ready_at is not None for place in self._engines)
        return [place for place in self.places if place.process is None and (answering or place.role == "engine")]

    def _start_due(self) -> None:
        for place in self._absent():
            if place.due <= time.monotonic() and not self.stopping:
                place.start(*self._start(place))

    def _start(self, place: Place) -> tuple[BaseProcess, Connection]:
        order, row = self.fleet.order, self._row(place)
        self.pulses.clear(row)
        if place.role == "engine":
            task = EngineTask(self.settings, self.lifecycle, place.number, self.folder, self._pulses_file, row, order)
            return self._spawner.start(work_engine, task)
        engines = EngineProcesses(self.folder, len(self._engines), _provider(self._engines))
        work_task = Task(
            self.settings,
            self.lifecycle,
            place.number,
            self.listener,
            self._loads_file,
            self._pulses_file,
            order,
            engines if self._engines else None,
        )
        return self._spawner.start(work, work_task)

    def _wait(self) -> None:
        """Until a process tells something or ends, or is to be started, or looked at, or something is asked of us."""
        links = {place.link: place for place in self.places if place.link is not None}
        due = [place.due - time.monotonic() for place in self._absent()]
        pause = max(0.0, min([*due, _LOOK_S]))
        for event in wait([self._woken, *links, *_sentinels(self.places)], pause):
            if event is self._woken:
                self._woken.recv()
            elif isinstance(event, Connection) and event in links:
                place = links[event]
                heard = place.hear()
                if isinstance(heard, News) and heard.failure is None:
                    self.fleet.ready(place)
                    self._tell_mixture(place)
                elif heard is not None and not isinstance(heard, News):
                    self.fleet.heard(place, heard)

    def _tell_mixture(self, place: Place) -> None:
        """An artifact that serves for ever was replaced, and a process that began later has read the new one."""
        if self.lifecycle.models is not None:
            return
        others = {other.model_version for other in self.places if other.role == place.role and other.model_version}
        if len(others) > 1:
            _log.error(
                "%s %d serves model %s, others %s: the artifact was replaced; restart the service",
                place.role,
                place.number,
                place.model_version,
                ", ".join(sorted(others - {place.model_version})),
            )

    def _kill_wedged(self) -> None:
        """After all processes were stopped and continued together, nobody is killed for it."""
        now, before = time.monotonic(), self._looked_at
        self._looked_at = now
        if now - before > _PAUSED_S:
            self._awake_at = now
        for place in self.wedged():
            assert place.process is not None
            self.pulses.clear(self._row(place))
            stuck_s = self.lifecycle.wedged_s
            _log.error("%s %d made no progress for %g s: it is killed", place.role, place.process.pid, stuck_s)
            _signal([place], signal.SIGKILL)

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
        ends = self.backoff.ends(place.ends, 0.0 if place.ready_at is None else now - place.ready_at)
        pause = self.backoff.pause_s(ends)
        reason = place.failure or f"{place.role} {process.pid} ended with {process.exitcode}"
        again = f", {ends} ends in a row" if ends > 1 else ""
        _log.error("%s; starting another in %g s%s", reason, pause, again)
        if place.role == "worker":
            self._loads.set(place.number, CLOSED)
        self.pulses.clear(self._row(place))
        self.on_end(process.pid)
        place.clear(ends, now + pause)
        self.fleet.ended(place, reason)

    def _end(self) -> str:
        """Stop all workers, then the engines; what is to be said of it, if they had to be killed."""
        self.listener.close()  # so that the last worker to close its own makes the port refuse
        allowed = self.lifecycle.grace_s + self.settings.drain_timeout_s + _KILL_AFTER_S
        deadline = time.monotonic() + allowed
        return self._stop(self._workers, deadline) or self._stop(self._engines, deadline)

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
