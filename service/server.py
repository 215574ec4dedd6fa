"""`serve`: a parent with the admin port, and workers on the public port."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from feature_store.cells import FOLDER, use_cells
from feature_store.logs import set_up_logs
from feature_store.metered import SWITCH
from model.artifact.formula import Formula
from service.doors.ring import KeyRing, refuse_open
from service.lifecycle.failure import one_line
from service.lifecycle.orders import static_order
from service.lifecycle.settings import LifecycleSettings
from service.observe.wanted import check_traces
from service.scrape import Scrape
from service.settings import Settings
from service.supervisor import Supervisor, fail
from service.tasks import LocalModel, Order

if TYPE_CHECKING:
    from service.lifecycle.keeper import Keeper

_WORKER_ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "2",  # glibc gives every thread a heap of its own, which never shrinks
    "OPENBLAS_NUM_THREADS": "1",  # NumPy multiplies small matrices here
    "ORT_DISABLE_TELEMETRY": "1",  # its thread would not survive the fork; and nothing is sent out
}


def serve(settings: Settings, lifecycle: LifecycleSettings | None = None) -> int:
    """Serve until SIGTERM or SIGINT; the exit code.  What keeps it from starting is one line on stderr, and 1."""
    try:
        set_up_logs("parent")
        check_traces()
        ring = KeyRing(settings.api_keys_file, settings.api_keys.get_secret_value())
        public = _bind(settings.host, settings.port, "--port")
        admin = _bind(settings.admin_host, settings.admin_port, "--admin-port")
        refuse_open(public.getsockname()[0], ring, settings.open, "--host")
        refuse_open(admin.getsockname()[0], ring, settings.open, "--admin-host")
        admin.listen()
    except (OSError, ValueError) as error:
        return fail(str(error))
    with tempfile.TemporaryDirectory(prefix="farm-serve-") as folder:
        return _run(settings, lifecycle or LifecycleSettings(), ring, public, admin, Path(folder))


def _run(
    settings: Settings,
    lifecycle: LifecycleSettings,
    ring: KeyRing,
    public: socket.socket,
    admin: socket.socket,
    folder: Path,
) -> int:
    """folder: for what workers and parent share, empty."""
    metrics = folder / "metrics"
    metrics.mkdir()
    os.environ[FOLDER] = str(metrics)
    os.environ[SWITCH] = str(settings.metrics).lower()
    if settings.metrics:
        use_cells()  # of the parent itself: whom its own door refuses
    for name, value in _WORKER_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    count = f"{settings.workers} worker{'s' if settings.workers > 1 else ''}"
    ready = f"farm serve: ready on {_url(public)} with {count}, admin on {_url(admin)}"
    scrape = Scrape(metrics)
    try:
        keeper = _keeper(settings, lifecycle, folder)
        order = keeper.first() if keeper else _signed(static_order(settings), lifecycle.trusted_keys)
    except (ValueError, OSError) as error:
        return fail(one_line(error))
    supervisor = Supervisor(settings, lifecycle, order, public, folder, lambda: print(ready, flush=True), scrape.bury)
    from service.admin import AdminServer, create_admin  # half a second, while the workers' modules are imported
    from service.doors.door import admin_door  # after its metrics have their directory

    with AdminServer(create_admin(supervisor, scrape, keeper, admin_door(ring)), admin), _keeping(keeper, supervisor):
        return supervisor.run()


def _keeper(settings: Settings, lifecycle: LifecycleSettings, folder: Path) -> Keeper | None:
    """None where one artifact serves for ever."""
    if lifecycle.models is None:
        return None
    from model.registry.signing import read_keys
    from model.registry.store import ArtifactStore
    from service.lifecycle.keeper import Keeper

    keys = () if lifecycle.trusted_keys is None else read_keys(lifecycle.trusted_keys)
    formula = None if settings.formula is None else Formula.load(settings.formula)
    cache = lifecycle.models_cache or (folder / "models" if _is_remote(lifecycle.models) else None)
    return Keeper(ArtifactStore.open(lifecycle.models, keys), lifecycle, cache, formula)


def _signed(order: Order, trusted_keys: Path | None) -> Order:
    """Of an artifact that serves for ever: with keys, the version that one of them has signed.  SignatureError."""
    if trusted_keys is None:
        return order
    from model.registry.contents import check_signed
    from model.registry.signing import read_keys

    path = order.model.path
    return replace(order, model=LocalModel(check_signed(path, read_keys(trusted_keys)), path))


def _is_remote(url: str) -> bool:
    return "://" in url and not url.startswith("file:")


@contextmanager
def _keeping(keeper: Keeper | None, supervisor: Supervisor) -> Iterator[None]:
    if keeper is not None:
        keeper.attach(supervisor.fleet, supervisor.worker_pulses)
        keeper.start()
    try:
        yield
    finally:
        if keeper is not None:
            keeper.close()


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
