"""One engine process: loads the model, then scores for the workers until it is told to stop."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from uvicorn.loops.auto import auto_loop_factory

from feature_store.logs import set_up_logs
from service.tasks import EngineTask, News
from service.worker import follow_parent, on_signal

if TYPE_CHECKING:
    from service.lifecycle.engine_stage import EngineStage

_BEAT_S = 0.1


def work_engine(task: EngineTask, link: Connection) -> None:
    """The whole life of an engine process."""
    on_signal(lambda: sys.exit(0))  # nobody is served yet
    threading.Thread(target=follow_parent, daemon=True).start()
    set_up_logs("engine")
    from service.lifecycle.engine_stage import EngineStage  # after the process has its signals: it takes a while
    from service.lifecycle.failure import one_line

    try:
        stage = EngineStage(task)
    except Exception as error:  # whatever it is, whoever starts the service gets one line
        link.send(News(failure=one_line(error)))
        raise SystemExit(1) from None
    with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:
        runner.run(_serve(stage, task, link))


async def _serve(stage: EngineStage, task: EngineTask, link: Connection) -> None:
    """Warm up, answer on the sockets and to the parent until it is told to stop, and finish what runs."""
    from service.lifecycle.control import Control

    stopped, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    try:
        news = await stage.start()
        gc.collect()
        gc.freeze()
        control = Control(link, stage.answer)
        beating = loop.create_task(_beat(stage, task))
        link.send(news)
        await stopped.wait()
        beating.cancel()
        control.close()
    finally:
        await stage.close()


async def _beat(stage: EngineStage, task: EngineTask) -> None:
    """So that the parent sees this loop turn, and its batches end."""
    from service.lifecycle.pulses import Pulse, Pulses

    pulses = Pulses(task.pulses)
    while True:
        pulses.set(task.row, Pulse(time.monotonic(), stage.busy_s()))
        await asyncio.sleep(_BEAT_S)
