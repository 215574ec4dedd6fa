"""One engine process: loads the model, then scores for the workers until it is told to stop."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from uvicorn.loops.auto import auto_loop_factory

from service.tasks import EngineTask, News
from service.worker import follow_parent, on_signal

if TYPE_CHECKING:
    from model.artifact.engine import Engine
    from service.scoring.scorer import LocalScorer


def work_engine(task: EngineTask, tell: Connection) -> None:
    """The whole life of an engine process."""
    on_signal(lambda: sys.exit(0))  # nobody is served yet
    threading.Thread(target=follow_parent, daemon=True).start()
    from service.engines import process_model  # after the process has its signals: it takes a while
    from service.runtime import one_line

    try:
        engine, scorer = process_model(task.settings, task.number)
    except Exception as error:  # whatever it is, whoever starts the service gets one line
        tell.send(News(failure=one_line(error)))
        raise SystemExit(1) from None
    news = News(model_version=engine.version, provider=engine.provider)
    with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:
        runner.run(_serve(engine, scorer, task, lambda: tell.send(news)))


async def _serve(engine: Engine, scorer: LocalScorer, task: EngineTask, on_ready: Callable[[], None]) -> None:
    from service.scoring.process import serve_engine

    stopped, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    gc.collect()
    gc.freeze()
    task.socket.unlink(missing_ok=True)  # of the process that was here before
    await serve_engine(engine, scorer, task.socket, on_ready, stopped)
