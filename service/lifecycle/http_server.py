"""A worker's HTTP server: ready when it is warm, and a stop that no request notices.

Told to stop, it is not ready at once, but takes and answers requests for `grace_s`, each answer the last of its
connection.  Then it takes no more connections, closes those that are idle, and ends with the last answer.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import gc
import socket
import termios
import time
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any

import uvicorn

from service.accept import Acceptor, Loads
from service.lifecycle.control import Control
from service.lifecycle.pulses import Pulse, Pulses
from service.runtime import Runtime, StartError, one_line
from service.tasks import News, Task

_SHOW_TICKS = 10  # of uvicorn, 0.1 s each, between two looks at the queue for the metrics
_LOOK_S = 0.02  # at connections, while they are closed
_LAST = (b"connection", b"close")


class Server(uvicorn.Server):
    """uvicorn's, with our acceptor, orders of the parent, and our stop."""

    def __init__(self, config: uvicorn.Config, task: Task, runtime: Runtime, link: Connection) -> None:
        super().__init__(config)
        self._task, self._runtime, self._link = task, runtime, link
        self._pulses = Pulses(task.pulses)
        self._leave_at: float | None = None  # time.monotonic(), when it was told to stop
        self._acceptor: Acceptor
        self._control: Control

    def order_to_stop(self) -> None:
        """Also when uvicorn, after it has ended, raises again the signals that it took: then it changes nothing."""
        self.should_exit = True
        self._begin_to_leave()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """In the loop that will serve, whose connections to a store are then open, before it listens."""
        await self._warm_up()
        await super().startup([])
        connections = self.server_state.connections
        loads = Loads(self._task.loads)
        self._acceptor = Acceptor(
            self._task.listener, self._protocol, lambda: len(connections), loads, self._task.number
        )
        self._control = Control(self._link, self._runtime.stage.answer)
        self._beat()
        if not self.should_exit:
            self._link.send(News(model_version=self._runtime.model.version))

    async def on_tick(self, counter: int) -> bool:
        self._acceptor.publish()
        self._beat()
        if counter % _SHOW_TICKS == 0:
            self._runtime.entrance.show()
        await super().on_tick(counter)
        return self._leave_at is not None and time.monotonic() >= self._leave_at

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._control.close()
        await self._acceptor.close()
        deadline = time.monotonic() + self._task.settings.drain_timeout_s
        while self.server_state.connections and time.monotonic() < deadline:
            for connection in list(self.server_state.connections):
                if _is_idle(connection):
                    connection.shutdown()
            self._beat()
            await asyncio.sleep(_LOOK_S)
        self.config.timeout_graceful_shutdown = max(0, round(deadline - time.monotonic()))
        await super().shutdown([])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._begin_to_leave()
        super().handle_exit(sig, frame)

    async def _warm_up(self) -> None:
        from service.ranking import warm_up

        try:
            await warm_up(self._runtime)
        except Exception as error:
            await self._runtime.close()
            raise StartError(f"warm-up: {one_line(error)}") from error
        gc.collect()
        gc.freeze()  # what is loaded stays: no collection needs to walk it
        _return_memory()

    def _begin_to_leave(self) -> None:
        """Also requests under way are the last of their connections."""
        if self._leave_at is None:
            self._runtime.ready = False
            self._leave_at = time.monotonic() + self._task.lifecycle.grace_s
            if self.config.loaded:
                self.config.encoded_headers.append(_LAST)
            self.server_state.default_headers.append(_LAST)

    def _beat(self) -> None:
        outcomes = self._runtime.stage.outcomes()
        self._pulses.set(self._task.number, Pulse(time.monotonic(), self._runtime.busy_s(), *outcomes))

    def _protocol(self) -> asyncio.Protocol:
        """Of a new connection, as uvicorn makes it."""
        make: Any = self.config.http_protocol_class
        protocol: asyncio.Protocol = make(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol


def _is_idle(connection: Any) -> bool:
    """Nothing of a request has come, not even unread.  connection: uvicorn's protocol."""
    begun = connection.scope is not None and (
        connection.cycle is None or connection.cycle.scope is not connection.scope
    )
    busy = connection.cycle is not None and not connection.cycle.response_complete
    return not begun and not busy and not _unread(connection.transport.get_extra_info("socket"))


def _unread(opened: socket.socket | None) -> int:
    """Bytes that have come."""
    if opened is None or opened.fileno() < 0:
        return 0
    return int.from_bytes(fcntl.ioctl(opened.fileno(), termios.FIONREAD, bytes(4)), "little")


def _return_memory() -> None:
    """To the system, what loading and warming up have left free: 5 MB of each worker, where malloc is glibc's."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
