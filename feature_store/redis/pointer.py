"""The generations of a namespace, and which one is read: a pointer in the server, and what a process knows of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from feature_store.redis.keys import RedisKeys
from feature_store.redis.link import RedisLink
from feature_store.store import StoreError

_log = logging.getLogger(__name__)


class ActivePointer:
    """The pointer as it was at most about `cache_s` ago; a task of the running event loop reads it again and again."""

    def __init__(
        self, link: RedisLink, keys: RedisKeys, value: int, cache_s: float, on_change: Callable[[], None]
    ) -> None:
        self.value = value
        self._link, self._keys, self._cache_s, self._on_change = link, keys, cache_s, on_change
        self._read_at = time.monotonic()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None

    async def current(self) -> int:
        """Without asking the server, but for the first time in an event loop."""
        if self._loop is not asyncio.get_running_loop():
            await self._start()
        return self.value

    async def read(self) -> int:
        """What the server says now."""
        with self._link.errors():
            stored = await self._link.client.get(self._keys.active)
        if stored is None:
            raise StoreError(f"store {self._link.where}: {self._keys.active} is gone")
        self._read_at = time.monotonic()
        self._set(int(stored))
        return self.value

    async def switch(self, generation: int) -> None:
        with self._link.errors():
            await self._link.client.set(self._keys.active, generation)
        self._set(generation)

    async def make(self) -> int:
        """The number of a new generation."""
        with self._link.errors():
            return int(await self._link.client.incr(self._keys.generations))

    async def made(self) -> int:
        """How many were ever made; they are numbered from 1."""
        with self._link.errors():
            return int(await self._link.client.get(self._keys.generations) or 0)

    async def close(self) -> None:
        """End the task, when it is of the running event loop; those of others ended with theirs."""
        task, self._task = self._task, None
        if task is not None and self._loop is asyncio.get_running_loop():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._loop = None

    def _set(self, value: int) -> None:
        if value != self.value:
            _log.info("generation %d of %s is read from now on", value, self._keys.prefix)
            self.value = value
            self._on_change()

    async def _start(self) -> None:
        if time.monotonic() - self._read_at > self._cache_s:
            await self.read()
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # nobody else has started it meanwhile
            self._loop, self._task = loop, loop.create_task(self._follow())

    async def _follow(self) -> None:
        # wait_for of Python 3.11, which redis-py sends with, swallows a cancellation that comes as its work is done.
        while self._task is asyncio.current_task():
            await asyncio.sleep(self._cache_s)
            try:
                await self.read()
            except StoreError as error:
                _log.warning("generation %d of %s is read on: %s", self.value, self._keys.prefix, error)
