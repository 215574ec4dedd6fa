"""The parent of several workers: starts them, replaces those that die, stops them together."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from service.metrics import MULTIPROCESS_DIRECTORY
from service.runtime import StartError
from service.server import fail, run_worker
from service.settings import Settings

_RESTART_PAUSE_S = 1.0  # so that a worker that dies at once does not keep the machine busy
_KILL_AFTER_S = 5.0  # beyond the drain timeout

_spawn = get_context("spawn")  # neither ONNX Runtime nor LMDB survives a fork


@dataclass
class _Worker:
    process: SpawnProcess
    news: Connection  # one message: None when it is ready, else why it cannot start
    ready: bool = False
    failure: str | None = None

    def hear(self) -> None:
        """Take its message, or the end of it."""
        try:
            failure = self.news.recv()
        except EOFError:
            failure = f"a worker ended with {self.process.exitcode} before it was ready"
        self.ready = failure is None
        self.failure = failure


class Supervisor:
    """Runs `settings.workers` processes on one listening socket."""

    def __init__(self, settings: Settings, listener: socket.socket, on_ready: Callable[[], None]) -> None:
        """on_ready is called once, when every worker answers."""
        self._settings, self._listener, self._on_ready = settings, listener, on_ready
        self._workers: list[_Worker] = []
        self._stopping = False
        self._woken, self._wake = _spawn.Pipe(duplex=False)

    def run(self) -> int:
        """Until SIGTERM or SIGINT; the exit code.  1 when a worker cannot start, and why on stderr."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        with tempfile.TemporaryDirectory(prefix="farm-metrics-") as directory:
            os.environ[MULTIPROCESS_DIRECTORY] = directory
            try:
                self._workers = [self._start() for _ in range(self._settings.workers)]
                return self._watch()
            finally:
                self._end()

    def _stop(self, *_: object) -> None:
        if not self._stopping:
            self._stopping = True
            self._wake.send(None)

    def _start(self) -> _Worker:
        news, tell = _spawn.Pipe(duplex=False)
        process = _spawn.Process(target=_work, args=(self._settings, self._listener, tell))
        process.start()
        tell.close()  # so that the end of the worker ends the pipe
        return _Worker(process, news)

    def _watch(self) -> int:
        announced = False
        while not self._stopping:
            self._wait()
            failures = [worker.failure for worker in self._workers if worker.failure is not None]
            if failures and not announced and not self._stopping:
                return fail(failures[0])
            if not announced and all(worker.ready for worker in self._workers):
                announced = True
                self._on_ready()
            self._replace_dead()
        return 0

    def _wait(self) -> None:
        """Until a worker is ready, fails or ends, or the service is told to stop."""
        starting = {worker.news: worker for worker in self._workers if not worker.ready and worker.failure is None}
        for event in wait([self._woken, *starting, *(worker.process.sentinel for worker in self._workers)]):
            if isinstance(event, Connection) and event in starting:
                starting[event].hear()

    def _replace_dead(self) -> None:
        for worker in [worker for worker in self._workers if worker.process.exitcode is not None]:
            if self._stopping:
                return
            reason = worker.failure or f"worker {worker.process.pid} ended with {worker.process.exitcode}"
            fail(f"{reason}; starting another")
            time.sleep(_RESTART_PAUSE_S)
            self._workers.remove(worker)
            self._workers.append(self._start())

    def _end(self) -> None:
        for worker in self._workers:
            if worker.process.is_alive():
                worker.process.terminate()
        deadline = time.monotonic() + self._settings.drain_timeout_s + _KILL_AFTER_S
        for worker in self._workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()


def _work(settings: Settings, listener: socket.socket, tell: Connection) -> None:
    """One worker process."""
    threading.Thread(target=_follow_parent, daemon=True).start()
    try:
        run_worker(settings, listener, lambda: tell.send(None))
    except StartError as error:
        tell.send(str(error))
        raise SystemExit(1) from None


def _follow_parent() -> None:
    """A worker whose parent was killed stops too, else it would keep the port."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
