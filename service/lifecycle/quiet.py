"""Work that must not be felt by requests: in a thread that gets the processor when nobody else wants it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TypeVar

ResultT = TypeVar("ResultT")

_SWITCH_INTERVAL_S = 0.0005  # a tenth of Python's: how long the event loop may wait for Python code of the thread


async def quietly(work: Callable[[], ResultT], lower: bool = True) -> ResultT:
    """The result of `work`, done in a thread of least priority, which ends with it.

    lower: else it has the usual priority.
    """
    pool = ThreadPoolExecutor(1, "quiet", initializer=lower_priority if lower else None)
    try:
        with _polite():
            return await asyncio.get_running_loop().run_in_executor(pool, work)
    finally:
        pool.shutdown(wait=False)


def quietly_now(work: Callable[[], ResultT]) -> ResultT:
    """The same where no event loop runs: the caller waits."""
    with ThreadPoolExecutor(1, "quiet", initializer=lower_priority) as pool:
        return pool.submit(work).result()


def lower_priority() -> None:
    """Of this thread, where the system has such threads (Linux).

    Rather than by nice: such a thread gives way to any other at once.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


@contextmanager
def _polite() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, _SWITCH_INTERVAL_S))
    try:
        yield
    finally:
        sys.setswitchinterval(before)
