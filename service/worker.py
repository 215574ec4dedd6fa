"""One worker process: loads everything, then answers on the public port until it is told to stop."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from service.accept import Acceptor, Loads
from service.settings import Settings
from service.tasks import News, Task


def work(task: Task, tell: Connection) -> None:
    """The whole life of a worker process."""
    on_signal(lambda: sys.exit(0))  # nobody is served yet
    threading.Thread(target=follow_parent, daemon=True).start()
    from service.runtime import StartError  # after the process has its signals: it takes a while

    try:
        _run(task, lambda version: tell.send(News(model_version=version)))
    except StartError as error:
        tell.send(News(failure=str(error)))
        raise SystemExit(1) from None


def on_signal(action: Callable[[], None]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: action())


def follow_parent() -> None:
    """A process whose parent was killed stops too, else it would keep the port."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


def _run(task: Task, on_ready: Callable[[str], None]) -> None:
    """Load, warm up, serve.  StartError when it cannot."""
    from service.app import create_app
    from service.ranking import warm_up
    from service.runtime import StartError, load_runtime, one_line

    runtime = load_runtime(task.settings, task.engines)

    async def before() -> None:
        try:
            await warm_up(runtime)
        except Exception as error:
            await runtime.close()
            raise StartError(f"warm-up: {one_line(error)}") from error
        gc.collect()
        gc.freeze()  # what is loaded stays: no collection needs to walk it
        _return_memory()

    def on_exit() -> None:
        runtime.ready = False

    config = _config(create_app(runtime), task.settings)
    server = _Server(config, task, before, lambda: on_ready(runtime.model.version), on_exit)

    def stop() -> None:
        """Also when uvicorn, after it has ended, raises again the signals that it took: then it changes nothing."""
        server.should_exit = True

    on_signal(stop)
    try:
        server.run()
    except OSError as error:
        raise StartError(f"cannot listen on port {task.settings.port}: {error.strerror}") from error


def _return_memory() -> None:
    """To the system, what loading and warming up have left free: 5 MB of each worker, where malloc is glibc's."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _config(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        access_log=False,
        log_level="warning",
        proxy_headers=False,  # nobody asks who the client is
        server_header=False,
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=settings.drain_timeout_s,
    )


class _Server(uvicorn.Server):
    """uvicorn's, with our acceptor; it tells when it listens and when it was told to stop.

    before: runs in the loop that will serve, whose connections to a store are then open, before it listens.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        task: Task,
        before: Callable[[], Awaitable[None]],
        on_ready: Callable[[], None],
        on_exit: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._task, self._before, self._on_ready, self._on_exit = task, before, on_ready, on_exit
        self._acceptor: Acceptor

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self._before()
        await super().startup([])
        connections = self.server_state.connections
        loads = Loads(self._task.loads)
        self._acceptor = Acceptor(
            self._task.listener, self._protocol, lambda: len(connections), loads, self._task.number
        )
        if not self.should_exit:
            self._on_ready()

    async def on_tick(self, counter: int) -> bool:
        self._acceptor.publish()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._acceptor.close()
        await super().shutdown([])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._on_exit()
        super().handle_exit(sig, frame)

    def _protocol(self) -> asyncio.Protocol:
        """Of a new connection, as uvicorn makes it."""
        make: Callable[..., asyncio.Protocol] = self.config.http_protocol_class
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
