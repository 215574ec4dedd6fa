"""A new generation of a Redis store: loaded beside the one that is read, brought up to date from the log, switched to.

Where the log stands is noted first.  What is appended from then on is replayed into the new generation after the load,
up to the end; then one pointer is switched, and what was appended until then is replayed too.  A worker acknowledges an
entry only when the generation it merged it into is still the one that is read (feature_store.events.worker), so every
event is in the new generation by one way or the other, and twice does no harm.

    farm:<ns>:load       hash: source, generation, position:<partition>, done:<step>; for a day after the last step
    farm:<ns>:load:lock  who is loading, for LOCK_MS after the last sign of life
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from feature_store.events.log import EventLog
from feature_store.redis.store import RedisStore
from feature_store.store import StoreError

LOCK_MS = 30_000
REPLAY_MARGIN_MS = 3_600_000  # a view that began so long before the source's end is made whole by the log
KEPT_S = 86_400  # a load that was broken off can go on for so long

Say = Callable[[str], None]


@dataclass(frozen=True)
class Load:
    """A load under way."""

    generation: int
    positions: dict[int, str]  # by partition, after which the log is replayed
    done: frozenset[str]  # steps, by name, of a load that was broken off


@dataclass(frozen=True)
class Finished:
    """A load that readers read."""

    replayed: int  # live events
    previous: int  # the generation that was read before


class Loading:
    """One load of a source into a new generation.

    Example::

        loading = Loading(store, EventLog(store.link, store.schema))
        async with loading.alone():
            load = await loading.begin("prepared 2026-01-05", since_ms)
            await fill(store.into(load.generation))
            await loading.finish(load)
    """

    def __init__(self, store: RedisStore, log: EventLog) -> None:
        self._store, self._log, self._link = store, log, store.link
        self._key = f"farm:{store.link.settings.namespace}:load"

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """While inside, no other process loads into this namespace.  StoreError when one does."""
        lock, me = f"{self._key}:lock", f"{socket.gethostname()} process {os.getpid()}"
        with self._link.errors():
            if not await self._link.client.set(lock, me, nx=True, px=LOCK_MS):
                holder = await self._link.client.get(lock)
                who = holder.decode() if isinstance(holder, bytes) else "another process"
                raise StoreError(
                    f"store {self._link.where}: {who} is loading; wait for it"
                    f" (its lock is given up {LOCK_MS // 1000} s after it died)"
                )
        ended = asyncio.Event()
        alive = asyncio.create_task(self._stay_alive(lock, ended))
        try:
            yield
        finally:
            ended.set()
            alive.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await alive
            with self._link.errors():
                if await self._link.client.get(lock) == me.encode():  # it may have been given up while this one hung
                    await self._link.client.delete(lock)

    async def begin(self, source: str, since_ms: int, allow_gap: bool = False) -> Load:
        """A new generation, or the one of the same source that was broken off; that of another source is dropped.

        since_ms: how far the source reaches; the log must reach back to REPLAY_MARGIN_MS before it unless allow_gap,
        because a view that went on then has its first part in the log alone.  LogGap when it does not.
        """
        with self._link.errors():
            found: dict[bytes, bytes] = await self._link.client.hgetall(self._key)  # type: ignore[assignment]
        fields = {name.decode(): value.decode() for name, value in found.items()}
        if fields and int(fields["generation"]) == await self._store.active():  # it was killed after the switch
            await self._catch_up(self._store.into(int(fields["generation"])), _load(fields).positions)
            await self.retire(int(fields["previous"]))
        elif fields.get("source") == source:
            return _load(fields)
        elif fields:
            await self._store.drop(int(fields["generation"]))
        positions = await self._log.positions_at(since_ms - REPLAY_MARGIN_MS, allow_gap)
        generation = await self._store.new_generation()
        fields = {"source": source, "generation": str(generation)}
        fields |= {f"position:{number}": position for number, position in positions.items()}
        with self._link.errors():
            await self._link.client.delete(self._key)
            await self._note(fields)
        return _load(fields)

    async def done(self, step: str) -> None:
        """Note a step, so that a load that goes on leaves it out."""
        with self._link.errors():
            await self._note({f"done:{step}": "1"})

    async def finish(self, load: Load, say: Say) -> Finished:
        """Bring the new generation up to date and let readers read it; `retire` or `forget` is the last step."""
        target = self._store.into(load.generation)
        previous = await self._store.active()
        positions = dict(load.positions)
        replayed = await self._catch_up(target, positions)
        with self._link.errors():
            await self._note({"previous": str(previous)})
        await self._store.switch(load.generation)
        replayed += await self._catch_up(target, positions)
        say(f"generation {load.generation} is read from now on; {replayed:,} live events replayed into it")
        return Finished(replayed, previous)

    async def retire(self, generation: int) -> None:
        """Delete a generation that is no longer active, once nobody reads it any more."""
        await asyncio.sleep(2 * self._link.settings.pointer_cache_s)
        await self._store.drop(generation)
        await self.forget()

    async def forget(self) -> None:
        """Nothing is left to be done for the load."""
        with self._link.errors():
            await self._link.client.delete(self._key)

    async def _catch_up(self, target: RedisStore, positions: dict[int, str]) -> int:
        """Apply what follows the positions, up to now, and move them on."""
        events = 0
        async for part in self._log.read_from(positions):
            await target.apply(part.batch)
            positions[part.partition] = part.position
            events += len(part.batch)
        return events

    async def _note(self, fields: dict[str, str]) -> None:
        pipe = self._link.pipeline()
        pipe.hset(self._key, mapping=fields)  # type: ignore[arg-type]  # str is a field's type
        pipe.expire(self._key, KEPT_S)
        await pipe.execute()

    async def _stay_alive(self, lock: str, ended: asyncio.Event) -> None:
        while not ended.is_set():  # a cancellation may be swallowed, as in redis_pointer
            await asyncio.sleep(LOCK_MS / 3000)
            with contextlib.suppress(StoreError), self._link.errors():
                await self._link.client.pexpire(lock, LOCK_MS)


def _load(fields: dict[str, str]) -> Load:
    """From the hash."""
    named = {
        prefix: {k.partition(":")[2]: v for k, v in fields.items() if k.startswith(prefix)}
        for prefix in ("position:", "done:")
    }
    positions = {int(number): position for number, position in named["position:"].items()}
    return Load(int(fields["generation"]), positions, frozenset(named["done:"]))
