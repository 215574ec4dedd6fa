"""`serve`: a parent with the admin port, and workers on the public port."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

from service.scrape import MULTIPROCESS_DIRECTORY, Scrape
from service.settings import Settings
from service.supervisor import Supervisor, fail

_WORKER_ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "2",  # glibc gives every thread a heap of its own, which never shrinks
    "OPENBLAS_NUM_THREADS": "1",  # NumPy multiplies small matrices here
    "ORT_DISABLE_TELEMETRY": "1",  # its thread would not survive the fork; and nothing is sent out
}


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; the exit code.  What keeps it from starting is one line on stderr, and 1."""
    try:
        public = _bind(settings.host, settings.port, "--port")
        admin = _bind(settings.admin_host, settings.admin_port, "--admin-port", listen=True)
    except OSError as error:
        return fail(str(error))
    with tempfile.TemporaryDirectory(prefix="farm-serve-") as folder:
        return _run(settings, public, admin, Path(folder))


def _run(settings: Settings, public: socket.socket, admin: socket.socket, folder: Path) -> int:
    """folder: for what workers and parent share, empty."""
    metrics = folder / "metrics"
    metrics.mkdir()
    os.environ[MULTIPROCESS_DIRECTORY] = str(metrics)
    for name, value in _WORKER_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    count = f"{settings.workers} worker{'s' if settings.workers > 1 else ''}"
    ready = f"farm serve: ready on {_url(public)} with {count}, admin on {_url(admin)}"
    scrape = Scrape(metrics)
    supervisor = Supervisor(settings, public, folder, lambda: print(ready, flush=True), scrape.bury)
    from service.admin import AdminServer, create_admin  # half a second, while the workers' modules are imported

    with AdminServer(create_admin(supervisor, scrape), admin):
        return supervisor.run()


def _bind(host: str, port: int, option: str, listen: bool = False) -> socket.socket:
    """listen: at once, else connections are refused, rather than kept waiting, until a worker is ready.

    OSError says in one line which option to change.
    """
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        if listen:
            listener.listen()
    except OSError as error:
        if listener is not None:
            listener.close()
        raise OSError(f"cannot listen on {host}:{port} ({option}): {error.strerror}") from error
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
