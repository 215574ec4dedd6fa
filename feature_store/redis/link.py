"""The way to a Redis server, a cluster, or the master that sentinels name: one client for each event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.asyncio.cluster import ClusterPipeline
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel
from redis.crc import REDIS_CLUSTER_HASH_SLOTS
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MovedError
from redis.exceptions import TimeoutError as RedisTimeoutError

from feature_store.redis.check import refusal, server_name
from feature_store.redis.cluster import SteadyCluster
from feature_store.redis.connect import Client, make_client, make_node, node_options, require_tls_files
from feature_store.redis.errors import REDIS_ERRORS, as_store_error, first_contact, store_errors
from feature_store.redis.settings import RedisSettings, settings_of_environment
from feature_store.redis.together import Together
from feature_store.redis.url import RedisUrl, parse_url, redact
from feature_store.store import StoreError, StoreUnreachable

__all__ = ["REDIS_ERRORS", "RedisLink", "as_store_error", "redact", "store_errors"]

T = TypeVar("T")


@dataclass
class _Opened:
    """What is open in one event loop."""

    client: Client
    sentinels: Sentinel | None
    together: Together | None = None  # None in a cluster
    nodes: dict[str, Redis] = field(default_factory=dict)  # of a cluster, by host:port


class RedisLink:
    """Connections to one store's servers, opened when they are needed.

    Usable from whichever event loop runs; close it in the loop that used it last.  A command is tried
    1 + settings.retries times, each at most settings.timeout_s.

    Example::

        link = RedisLink.open("redis+cluster://10.0.0.1,10.0.0.2", RedisSettings())
        await link.check()
        with link.errors():
            await link.client.get("farm:default:active")
    """

    def __init__(self, url: RedisUrl, settings: RedisSettings) -> None:
        self._url = url
        self._opened: dict[asyncio.AbstractEventLoop, _Opened] = {}
        self.settings = settings.model_copy(update={"namespace": url.namespace or settings.namespace})

    @classmethod
    def open(cls, url: str, settings: RedisSettings | None = None) -> RedisLink:
        """No connection is made yet.  The URL's user, password and namespace come before those of the settings.

        Raises StoreError for a URL that means nothing, or files of TLS that cannot be used.
        """
        parsed, chosen = parse_url(url), settings or settings_of_environment()
        require_tls_files(parsed, chosen)
        return cls(parsed, chosen)

    def __repr__(self) -> str:
        return f"RedisLink({self.where!r})"

    @property
    def where(self) -> str:
        """The URL without user, password and options, for messages."""
        return self._url.where

    @property
    def is_cluster(self) -> bool:
        return self._url.kind == "cluster"

    @property
    def client(self) -> Client:
        """The client of the running event loop; replies are bytes."""
        return self._here().client

    def read(self, *command: Any) -> Awaitable[Any]:
        """The answer to a command, which may go to the server in one trip with those of other requests.  What redis-py
        raises: wait for it within `errors`.
        """
        here = self._here()
        return here.client.execute_command(*command) if here.together is None else here.together.execute(*command)

    def pipeline(self) -> Pipeline | ClusterPipeline:
        """Commands sent together, each for itself; in a cluster one batch to each node."""
        return self.client.pipeline(transaction=False)

    async def primaries(self) -> list[Redis]:
        """A client of every server that writes, as the cluster is at the moment; without a cluster there is one."""
        client = self.client
        if not isinstance(client, SteadyCluster):
            return [client]
        with self.errors():
            await client.refresh()
        return [self._node(node.host, int(node.port)) for node in client.get_primaries()]

    async def call(self, key: str | bytes, function: Callable[[Redis], Awaitable[T]]) -> T:
        """What `function` returns, given a client of the server that writes a key; for what must go to one connection,
        such as a write and its WAIT in one pipeline.  It is called once more when the cluster has changed.  StoreError.
        """
        client = self.client
        with self.errors():
            if not isinstance(client, SteadyCluster):
                return await function(client)
            await client.initialize()
            try:
                return await function(self._writer(client, key))
            except (MovedError, RedisConnectionError, RedisTimeoutError):
                await client.refresh()
                return await function(self._writer(client, key))

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turns what the client library raises inside into one StoreError."""
        with store_errors(self.where):
            yield

    async def check(self) -> str:
        """Whether the servers can be used; StoreError says why they cannot.

        Looked at: the way there, version, role, slots without a master, eviction.  Returns product and version.
        """
        try:
            return await self._check()
        except MasterNotFoundError as error:
            raise await self._no_master() from error
        except REDIS_ERRORS as error:
            raise first_contact(error, self.where) from error

    async def aclose(self) -> None:
        """Close what is open in the running event loop, and forget what closed loops left."""
        self._forget()
        opened = self._opened.pop(asyncio.get_running_loop(), None)
        if opened is None:
            return
        for client in (*opened.nodes.values(), opened.client, opened.sentinels):
            if isinstance(client, SteadyCluster):
                await client.close_all()
            elif client is not None:
                await client.aclose()

    def _here(self) -> _Opened:
        loop = asyncio.get_running_loop()
        opened = self._opened.get(loop)
        if opened is None:
            self._forget()
            client, sentinels = make_client(self._url, self.settings)
            together = None if isinstance(client, SteadyCluster) else Together(client)
            opened = self._opened[loop] = _Opened(client, sentinels, together)
        return opened

    def _forget(self) -> None:
        """Connections of a closed loop cannot be closed any more; their sockets go with the garbage."""
        self._opened = {loop: opened for loop, opened in self._opened.items() if not loop.is_closed()}

    def _node(self, host: str, port: int) -> Redis:
        nodes = self._here().nodes
        name = f"{host}:{port}"
        if name not in nodes:
            nodes[name] = make_node(host, port, node_options(self._url, self.settings))
        return nodes[name]

    def _writer(self, client: SteadyCluster, key: str | bytes) -> Redis:
        node = client.get_node_from_key(key)  # type: ignore[arg-type]  # bytes do as well
        assert node is not None, "only a replica can be none"
        return self._node(node.host, int(node.port))

    async def _check(self) -> str:
        client = self.client
        if isinstance(client, SteadyCluster):
            await client.initialize()
        names = set()
        for server in await self.primaries():
            await server.ping()
            info: dict[str, Any] = await server.info()
            if reason := refusal(info, self.settings.allow_eviction, self.is_cluster):
                raise StoreError(f"store {self.where}: {reason}")
            if reason := await self._incomplete(server):
                raise StoreUnreachable(f"store {self.where}: {reason}")
            names.add(server_name(info))
        return ", ".join(sorted(names))

    async def _incomplete(self, server: Redis) -> str | None:
        if not self.is_cluster:
            return None
        state = await server.execute_command("CLUSTER INFO")
        served = int(state["cluster_slots_assigned"]) - int(state["cluster_slots_fail"])
        if state["cluster_state"] == "ok" and served == REDIS_CLUSTER_HASH_SLOTS:
            return None
        return f"the cluster is not complete: {served} of {REDIS_CLUSTER_HASH_SLOTS} slots have a master"

    async def _no_master(self) -> StoreError:
        sentinels = self._here().sentinels
        assert sentinels is not None, "only sentinels know no master"
        reason = "no sentinel answers"
        for sentinel in sentinels.sentinels:
            try:
                known = await sentinel.sentinel_masters()
            except REDIS_ERRORS as error:
                reason = f"no sentinel answers; the last one: {str(as_store_error(error, '')).partition(': ')[2]}"
                continue
            if self._url.master in known:
                reason = (
                    f"the sentinels say that the master {self._url.master!r} is down; another may follow in seconds"
                )
                break
            names = ", ".join(sorted(map(str, known))) or "none"
            return StoreError(
                f"store {self.where}: the sentinels know no master {self._url.master!r}; they know {names}"
            )
        return StoreUnreachable(f"store {self.where}: {reason}")
