"""Writes that a replica must have before they count.

Redis tells of a connection's own writes only (WAIT), so writes and WAIT go over one connection to each server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import MovedError

from feature_store.redis.cluster import SteadyCluster
from feature_store.redis.link import RedisLink
from feature_store.store import StoreError

Command = tuple[str, Sequence[Any]]
"""A key, and the whole command that writes it."""


_TRIES = 3  # while slots move from one server to another


class NotDurable(StoreError):  # noqa: N818 - it is what was found
    """What was written may be lost with the server that has it; write it again."""


async def write_replicated(link: RedisLink, commands: Sequence[Command]) -> list[Any]:
    """Replies, errors among them, in the order of the commands, when a replica of each server has the writes.

    NotDurable when one has not within settings.wait_ms; another StoreError when a server fails.
    """
    replies: list[Any] = [None] * len(commands)
    todo = list(range(len(commands)))
    for _ in range(_TRIES):
        await _write(link, commands, todo, replies)
        todo = [at for at in todo if isinstance(replies[at], MovedError)]
        if not todo:
            break
        if isinstance(link.client, SteadyCluster):
            await link.client.refresh()
    return replies


async def _write(link: RedisLink, commands: Sequence[Command], todo: Sequence[int], replies: list[Any]) -> None:
    """Write some of the commands; their replies go to their places."""
    with link.errors():
        groups = await _by_server(link, [(at, commands[at][0]) for at in todo])
        answers = await asyncio.gather(*(_write_to_one(link, [commands[at] for at in group]) for group in groups))
    for group, answer in zip(groups, answers, strict=True):
        for at, reply in zip(group, answer, strict=True):
            replies[at] = reply


async def _by_server(link: RedisLink, keys: Sequence[tuple[int, str]]) -> list[list[int]]:
    """The numbers of keys that one server writes, by server."""
    client = link.client
    groups: dict[Any, list[int]] = {}
    if isinstance(client, SteadyCluster):
        await client.initialize()
    for number, key in keys:
        server = client.get_node_from_key(key) if isinstance(client, SteadyCluster) else None
        groups.setdefault(server, []).append(number)
    return list(groups.values())


async def _write_to_one(link: RedisLink, commands: Sequence[Command]) -> list[Any]:
    async def write(server: Redis) -> list[Any]:
        pipe: Any = server.pipeline(transaction=False)
        for _, command in commands:
            pipe.execute_command(*command)
        pipe.execute_command("WAIT", 1, link.settings.wait_ms)
        replies: list[Any] = await pipe.execute(raise_on_error=False)
        return replies

    *replies, held = await link.call(commands[0][0], write)
    written = any(not isinstance(reply, Exception) for reply in replies)
    if written and (isinstance(held, Exception) or held == 0):
        raise NotDurable(f"no replica confirmed what was written within {link.settings.wait_ms} ms")
    return replies
