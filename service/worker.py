"""One worker process: loads everything, then answers on the public port until it is told to stop."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING

import uvicorn

from feature_store.logs import set_up_logs
from service.tasks import News, Task

if TYPE_CHECKING:
    from service.lifecycle.serving import Serving
    from service.runtime import Runtime


def work(task: Task, link: Connection) -> None:
    """The whole life of a worker process."""
    on_signal(lambda: sys.exit(0))  # nobody is served yet
    threading.Thread(target=follow_parent, daemon=True).start()
    from service.observe.trail import log_context  # its metrics want the directory that the parent has made

    set_up_logs("worker", log_context)
    from service.runtime import StartError  # after the process has its signals: it takes a while

    try:
        _run(task, link)
    except StartError as error:
        link.send(News(failure=str(error)))
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


def _run(task: Task, link: Connection) -> None:
    """Load, warm up, serve.  StartError when it cannot."""
    from service.lifecycle.http_server import Server
    from service.metrics import name_models
    from service.observe.start import observing
    from service.runtime import StartError, load_runtime

    def on_switch(_: list[Serving]) -> None:
        name_models(runtime.serving.all())

    runtime = load_runtime(task.settings, task.engines, task.order, task.lifecycle, on_switch)
    config = _config(runtime)
    server = Server(config, task, runtime, link)
    on_signal(server.order_to_stop)
    try:
        with observing(task.settings):
            server.run()
    except OSError as error:
        raise StartError(f"cannot listen on port {task.settings.port}: {error.strerror}") from error


def _config(runtime: Runtime) -> uvicorn.Config:
    from service.app import create_app, create_protocol  # their metrics want the directory that the parent has made
    from service.doors.limits import Limits, affordable_connections

    settings = runtime.settings
    limits = Limits(
        connections=affordable_connections(settings.max_connections),
        idle_s=settings.keep_alive_s,
        head_s=settings.head_timeout_s,
        body_s=settings.body_timeout_s,
        target_bytes=settings.max_target_bytes,
        head_bytes=settings.max_head_bytes,
        headers=settings.max_headers,
    )
    return uvicorn.Config(
        create_app(runtime),
        http=create_protocol(runtime, limits),
        ws="none",
        access_log=False,
        log_config=None,
        log_level="warning",
        proxy_headers=False,  # nobody asks who the client is
        server_header=False,
        timeout_graceful_shutdown=settings.drain_timeout_s,
    )
