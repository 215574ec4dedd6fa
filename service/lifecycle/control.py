"""Orders of the parent, taken by the event loop of a process that it has started, one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection

from service.tasks import Heard, Told

Answer = Callable[[Told], Awaitable[Heard | None]]


class Control:
    """On the loop that runs."""

    def __init__(self, link: Connection, answer: Answer) -> None:
        """answer: does what is told; None when nothing is to be answered."""
        self._link, self._answer = link, answer
        self._told: asyncio.Queue[Told] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(link.fileno(), self._read)
        self._work = self._loop.create_task(self._obey())

    def close(self) -> None:
        self._loop.remove_reader(self._link.fileno())
        self._work.cancel()

    def _read(self) -> None:
        try:
            self._told.put_nowait(self._link.recv())
        except (EOFError, OSError):  # the parent ended: this process will be told to stop
            self._loop.remove_reader(self._link.fileno())

    async def _obey(self) -> None:
        while True:
            heard = await self._answer(await self._told.get())
            if heard is not None:
                self._link.send(heard)
