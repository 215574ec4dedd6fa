"""Going over all keys of a kind, on every server that writes.  A key may be met twice while a server moves its keys."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from feature_store.redis.keys import ids_of
from feature_store.redis.link import RedisLink

_KEYS_AT_ONCE = 1000  # looked at in one trip, not all of which are of the kind
_SAMPLE = 100  # keys whose size is asked for


class Scanner:
    """Every method raises StoreError."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link

    async def keys(self, pattern: str) -> AsyncIterator[list[bytes]]:
        for server in await self._link.primaries():
            cursor, done = 0, False
            while not done:
                with self._link.errors():
                    answer: Any = await server.scan(cursor, pattern, _KEYS_AT_ONCE)
                cursor, keys = answer
                if keys:
                    yield keys
                done = cursor == 0

    async def ids(self, pattern: str) -> AsyncIterator[list[int]]:
        """Of users or authors."""
        async for keys in self.keys(pattern):
            yield ids_of(keys)

    async def values(self, pattern: str, command: str, *arguments: str) -> AsyncIterator[list[tuple[int, bytes, Any]]]:
        """Id, key, and what the command says of the key."""
        async for keys in self.keys(pattern):
            yield list(zip(ids_of(keys), keys, await self._ask(command, keys, *arguments), strict=True))

    async def count(self, pattern: str) -> int:
        return sum([len(keys) async for keys in self.keys(pattern)])

    async def remove(self, pattern: str) -> int:
        """Returns how many there were."""
        return sum([sum(await self._ask("UNLINK", keys)) async for keys in self.keys(pattern)])

    async def mean_bytes(self, pattern: str) -> int:
        """Memory of a key, the mean of some; 0 when there is none."""
        async for keys in self.keys(pattern):
            sizes = await self._ask("MEMORY USAGE", keys[:_SAMPLE], "SAMPLES", "0")
            return round(sum(size or 0 for size in sizes) / len(sizes))
        return 0

    async def used_memory(self) -> int:
        """Bytes, of all servers that write, for whatever they hold."""
        with self._link.errors():
            return sum([(await server.info("memory"))["used_memory"] for server in await self._link.primaries()])

    async def _ask(self, command: str, keys: Sequence[bytes], *arguments: str) -> list[Any]:
        with self._link.errors():
            pipe = self._link.pipeline()
            for key in keys:
                pipe.execute_command(command, key, *arguments)
            answers: list[Any] = await pipe.execute()
            return answers
