"""redis-py's cluster client, made steady: a node that fails takes nothing else with it, and commands need one trip."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Self

from redis._parsers import AsyncCommandsParser
from redis.asyncio import RedisCluster
from redis.asyncio.cluster import ClusterNode, ClusterPipeline, PipelineCommand
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    RedisClusterException,
    RedisError,
    SlotNotCoveredError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

_ASK_EVERY_S = 0.25  # who writes what; asking reads 16,384 slots and opens all connections anew
_IN_DOUBT = (RedisConnectionError, RedisTimeoutError, ClusterDownError, SlotNotCoveredError)


class SteadyCluster(RedisCluster):
    """A client of a whole cluster that keeps serving what the living nodes have while another fails over.

    redis-py would close the connections to all nodes when one fails, ask for the topology at each failed command, give
    up when the first master is the one that died, and ask the server for the keys of FCALL and XREADGROUP each time.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(require_full_coverage=False, **options)  # what is served is served; check() tells of the rest
        self.commands_parser = _CommandsOnce()
        self._limit_s = 2 * options["socket_timeout"]
        self._ask_at = 0.0  # time.monotonic()

    async def initialize(self, *args: Any, **options: Any) -> Self:
        """Learn who writes what, if that is not known or in doubt.  A stalled cluster is asked for a limited time."""
        if self._initialize and self.nodes_manager.default_node and time.monotonic() < self._ask_at:
            self._initialize = False
        if not self._initialize:
            return self
        try:
            async with asyncio.timeout(self._limit_s):
                await super().initialize(*args, **options)
        except TimeoutError:
            raise RedisTimeoutError("the cluster did not tell in time who writes what") from None
        self._ask_at = time.monotonic() + _ASK_EVERY_S
        return self

    async def refresh(self) -> None:
        """Learn who writes what, unless that was just done."""
        self._initialize = True
        await self.initialize()

    async def aclose(self) -> None:
        """What redis-py calls when a node failed: ask again.  To close, use `close_all`."""
        self._initialize = True

    async def close_all(self) -> None:
        """Close the connections to all nodes."""
        self._initialize = True
        await self.nodes_manager.aclose()
        await self.nodes_manager.aclose("startup_nodes")

    def pipeline(self, transaction: Any = None, shard_hint: Any = None) -> ClusterPipeline:
        if transaction:
            return super().pipeline(transaction)
        return _Pipeline(self)  # type: ignore[abstract]  # as redis-py's own line would need

    async def _determine_slot(self, command: str, *args: Any) -> int:
        slot = await self._slot_of(command, *args)
        if slot not in self.nodes_manager.slots_cache:
            self._initialize = True
            raise SlotNotCoveredError(f"slot {slot} has no master")
        return slot

    async def _slot_of(self, command: str, *args: Any) -> int:
        if command == "FCALL" and int(args[1]) > 0:
            return self.keyslot(args[2])
        if command in ("XREADGROUP", "XREAD"):
            streams = next(place for place, word in enumerate(args) if word in (b"STREAMS", "STREAMS"))
            return self.keyslot(args[streams + 1])
        return await super()._determine_slot(command, *args)


class _Pipeline(ClusterPipeline):
    """One batch to each node.  A node that fails leaves its error to its own commands, which alone are tried again.

    redis-py would send all again and raise for all, even with raise_on_error=False.
    """

    async def execute(self, raise_on_error: bool = True, allow_redirections: bool = True) -> list[Any]:
        queue: list[PipelineCommand] = self._execution_strategy._command_queue  # type: ignore[attr-defined]
        todo, tries = queue, 1 + self.cluster_client.retry.get_retries()
        while todo and tries:
            await self.cluster_client.initialize()
            await self._send(todo)
            todo = [command for command in todo if isinstance(command.result, _IN_DOUBT)]
            tries -= 1
            if todo:
                self.cluster_client._initialize = True
        await self.reset()
        results = [command.result for command in queue]
        errors = [result for result in results if isinstance(result, Exception)]
        if errors and raise_on_error:
            raise errors[0]
        return results

    async def _send(self, commands: list[PipelineCommand]) -> None:
        client = self.cluster_client
        batches: dict[ClusterNode, list[PipelineCommand]] = {}
        for command in commands:
            given = command.kwargs.pop("target_nodes", None)  # by redis-py's own commands; not for a second try
            try:
                slot = None if given else await client._determine_slot(*command.args)
            except SlotNotCoveredError as error:
                command.result = error
                continue
            node = (
                client._parse_target_nodes(given)[0] if slot is None else client.nodes_manager.get_node_from_slot(slot)
            )
            batches.setdefault(node, []).append(command)
        await asyncio.gather(*(_send_to(client, node, batch) for node, batch in batches.items()))


async def _send_to(client: RedisCluster, node: ClusterNode, commands: list[PipelineCommand]) -> None:
    """The result of each command becomes what the server said, or the error of the connection."""
    try:
        failed = await node.execute_pipeline(commands)
    except (RedisConnectionError, RedisTimeoutError) as error:
        failed = False
        for command in commands:
            command.result = error
    for command in commands if failed else ():
        if isinstance(command.result, MovedError | AskError | TryAgainError):
            try:
                command.result = await client.execute_command(*command.args, **command.kwargs)
            except (RedisError, RedisClusterException) as error:
                command.result = error


class _CommandsOnce(AsyncCommandsParser):
    """Where the keys of each command are, asked once: it does not change with the topology."""

    async def initialize(self, node: ClusterNode | None = None) -> None:
        if node is not None:
            self.node = node
        if not self.commands:
            await super().initialize(node)
