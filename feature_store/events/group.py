"""One consumer of the group that merges a partition of the log: read, claim, keep, acknowledge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from feature_store.events.log import GROUP, EventLog

NEW, OWN = ">", "0"


@dataclass(frozen=True)
class LogEntry:
    """One entry of a partition, delivered to this consumer."""

    id: bytes
    accepted_ms: int  # ms since 1970, by the clock of who accepted it; 0 when the entry does not say
    value: bytes  # EventBatch.to_bytes
    deliveries: int = 1  # how often it has been delivered, this time included


class GroupConsumer:
    """Every method raises StoreError when the server fails."""

    def __init__(self, log: EventLog, partition: int, name: str) -> None:
        self.partition = partition
        self._log, self._name, self._key = log, name, log.key(partition)

    async def read(self, count: int, block_ms: int) -> list[LogEntry]:
        """At most `count` entries that were not delivered yet; none when none came within block_ms."""
        return await self._read(NEW, count, block_ms)

    async def missed(self, count: int) -> list[LogEntry]:
        """At most `count` entries that were delivered to this consumer and not acknowledged, oldest first.

        The answer that brought them may have been lost with its connection.
        """
        return await self._read(OWN, count, None)

    async def claim(self, idle_ms: int) -> LogEntry | None:
        """The oldest entry that its consumer has left alone for idle_ms; None when there is none.

        One at a time, so that an entry that ends its consumer adds to no other's deliveries.
        """
        client = self._log.client
        with self._log.link.errors():
            idle = await client.xpending_range(self._key, GROUP, "-", "+", 1, idle=idle_ms)
            if not idle:
                return None
            (entry,) = idle
            found = await client.xclaim(self._key, GROUP, self._name, idle_ms, [entry["message_id"]])
        claimed = [_entry(one, entry["times_delivered"] + 1) for one in found]
        return claimed[0] if claimed else None

    async def keep(self, ids: Sequence[bytes]) -> None:
        """Say that they are still worked on; it counts as no delivery."""
        with self._log.link.errors():
            await self._log.client.xclaim(self._key, GROUP, self._name, 0, list(ids), justid=True)

    async def acknowledge(self, ids: Sequence[bytes]) -> None:
        """They are merged, or dead letters."""
        with self._log.link.errors():
            await self._log.client.xack(self._key, GROUP, *ids)

    async def _read(self, after: str, count: int, block_ms: int | None) -> list[LogEntry]:
        with self._log.link.errors():
            found = await self._log.client.xreadgroup(GROUP, self._name, {self._key: after}, count, block_ms)
        return [_entry(entry, 1) for _, entries in found for entry in entries]


def _entry(one: tuple[bytes, dict[bytes, bytes]], deliveries: int) -> LogEntry:
    entry, fields = one
    accepted = fields.get(b"t", b"0")
    return LogEntry(entry, int(accepted) if accepted.isdigit() else 0, fields.get(b"b", b""), deliveries)
