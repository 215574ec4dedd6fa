"""How the parent starts its processes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import TypeVar

TaskT = TypeVar("TaskT")


class Spawner:
    """Forks them from a process that has imported all they need; where fork is unsafe (macOS), starts them anew."""

    def __init__(self) -> None:
        self._context = _context()

    def pipe(self) -> tuple[Connection, Connection]:
        """One way, to be waited for with the processes' links: the end to read, the end to write."""
        return self._context.Pipe(duplex=False)

    def start(self, work: Callable[[TaskT, Connection], None], task: TaskT) -> tuple[BaseProcess, Connection]:
        """A process that does `work`, and the link to it."""
        mine, its = self._context.Pipe()
        process = self._context.Process(target=work, args=(task, its))
        with _no_main_module():
            process.start()
        its.close()  # so that the end of the process ends the link
        return process, mine


def _context() -> ForkServerContext | SpawnContext:
    if sys.platform != "linux":
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(["service.preload"])
    forkserver.ensure_running()  # it imports in the background from now on
    return context


@contextmanager
def _no_main_module() -> Iterator[None]:
    """multiprocessing would import the command line, with all its verbs, in every worker."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
