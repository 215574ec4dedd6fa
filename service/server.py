"""`serve`: one process, or several workers on one port under a parent that replaces those that die."""

from __future__ import annotations

import gc
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from service.settings import Settings

_BACKLOG = 2048  # connections that wait to be accepted


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; the exit code.  What keeps it from starting is one line on stderr, and 1."""
    try:
        listener = _bind(settings.host, settings.port)
    except OSError as error:
        return fail(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}")
    url = _url(listener)
    if settings.workers == 1:
        from service.runtime import StartError

        try:
            run_worker(settings, listener, lambda: _announce(f"ready on {url}"))
        except StartError as error:
            return fail(str(error))
        return 0
    from service.supervisor import Supervisor

    return Supervisor(settings, listener, lambda: _announce(f"ready on {url} with {settings.workers} workers")).run()


def run_worker(settings: Settings, listener: socket.socket, on_ready: Callable[[], None]) -> None:
    """Load everything in this process, then answer until told to stop.  StartError when it cannot."""
    from service.app import create_app  # after PROMETHEUS_MULTIPROC_DIR is set
    from service.ranking import warm_up
    from service.runtime import StartError, load_runtime, one_line

    _on_signal(lambda: sys.exit(0))  # nobody is served yet
    runtime = load_runtime(settings)

    async def before() -> None:
        try:
            await warm_up(runtime)
        except Exception as error:
            await runtime.close()
            raise StartError(f"warm-up: {one_line(error)}") from error
        gc.collect()
        gc.freeze()  # what is loaded stays: no collection needs to walk it

    def on_exit() -> None:
        runtime.ready = False

    server = _Server(_config(create_app(runtime), settings), before, on_ready, on_exit)

    def stop() -> None:
        """Also when uvicorn, after it has ended, raises again the signals that it took: then it changes nothing."""
        server.should_exit = True

    _on_signal(stop)
    server.run(sockets=[listener])


def _config(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        backlog=_BACKLOG,
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=settings.drain_timeout_s,
    )


def fail(message: str) -> int:
    """Say it in one line; the exit code."""
    print(f"farm serve: {message}", file=sys.stderr, flush=True)
    return 1


def _on_signal(action: Callable[[], None]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: action())


class _Server(uvicorn.Server):
    """uvicorn's, which tells when it listens and when it was told to stop.

    before: runs in the loop that will serve, whose connections to a store are then open, before it listens.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        before: Callable[[], Awaitable[None]],
        on_ready: Callable[[], None],
        on_exit: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._before, self._on_ready, self._on_exit = before, on_ready, on_exit

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self._before()
        await super().startup(sockets)
        if not self.should_exit:
            self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._on_exit()
        super().handle_exit(sig, frame)


def _bind(host: str, port: int) -> socket.socket:
    """Bound, not listening: until a worker is ready, connections are refused rather than kept waiting."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _announce(message: str) -> None:
    print(f"farm serve: {message}", flush=True)
