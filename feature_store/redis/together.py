"""Commands that different requests give in one turn of the event loop go to the server together.

Requests that arrived together then share one write, one read and one connection; whoever stops waiting takes nothing
from the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis

Waiting = tuple[tuple[Any, ...], asyncio.Future[Any]]  # a command and who waits for its answer


class Together:
    """Over one server, in one event loop."""

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._waiting: list[Waiting] = []
        self._sending: set[asyncio.Task[None]] = set()

    def execute(self, *command: Any) -> asyncio.Future[Any]:
        """The answer of the server; what redis-py raises."""
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._send)
        future = loop.create_future()
        self._waiting.append((command, future))
        return future

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        task = asyncio.ensure_future(self._answer(waiting))
        self._sending.add(task)  # a loop holds its tasks by weak references only
        task.add_done_callback(self._sending.discard)

    async def _answer(self, waiting: Sequence[Waiting]) -> None:
        wanted = [(command, future) for command, future in waiting if not future.done()]
        try:
            answers = await self._ask([command for command, _ in wanted])
        except Exception as error:  # whatever the client says, it says to all who wait
            answers = [error] * len(wanted)
        for (_, future), answer in zip(wanted, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)

    async def _ask(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        if len(commands) == 1:
            return [await self._client.execute_command(*commands[0])]
        async with self._client.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            answers: list[Any] = await pipeline.execute(raise_on_error=False)
            return answers
