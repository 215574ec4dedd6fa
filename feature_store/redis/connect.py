"""Clients of redis-py for each kind of URL: pools that wait, and tries that do not multiply."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from hiredis import pack_command
from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    ConnectionPool,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import (
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.credentials import UsernamePasswordCredentialProvider
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MaxConnectionsError, ReadOnlyError

from feature_store.redis.cluster import SteadyCluster
from feature_store.redis.settings import RedisSettings
from feature_store.redis.url import RedisUrl
from feature_store.store import StoreError

Client = Redis | SteadyCluster

_BACKOFF_S, _BACKOFF_CAP_S = 0.05, 0.2


def make_client(url: RedisUrl, settings: RedisSettings) -> tuple[Client, Sentinel | None]:
    """A client for the running event loop, not connected yet, and the sentinels that it asks."""
    options = _options(url, settings)
    if url.kind == "cluster":
        nodes = [ClusterNode(host, port) for host, port in url.hosts]
        return SteadyCluster(startup_nodes=nodes, max_connections=settings.max_connections, **options), None
    options |= {"max_connections": settings.max_connections, "wait_s": settings.timeout_s, "db": url.db}
    if url.kind == "sentinel":
        sentinels = Sentinel(url.hosts, sentinel_kwargs=_sentinel_options(url, settings))
        ready = {"connection_class": _SentinelTls if options.pop("ssl", False) else _SentinelTcp, **options}
        return Redis.from_pool(WaitingSentinelPool(url.master, sentinels, **ready)), sentinels
    if url.kind == "unix":
        return Redis.from_pool(WaitingPool(connection_class=_Unix, path=url.path, **options)), None
    ((host, port),) = url.hosts
    return make_node(host, port, options), None


def make_node(host: str, port: int, options: Mapping[str, Any]) -> Redis:
    """A client of one server."""
    ready = {**options}
    kind = _Tls if ready.pop("ssl", False) else _Tcp
    return Redis.from_pool(WaitingPool(connection_class=kind, host=host, port=port, **ready))


def node_options(url: RedisUrl, settings: RedisSettings) -> dict[str, Any]:
    """Options of make_node for the nodes of a cluster."""
    return _options(url, settings) | {"max_connections": settings.max_connections, "wait_s": settings.timeout_s}


def require_tls_files(url: RedisUrl, settings: RedisSettings) -> None:
    """StoreError when the files of TLS cannot be used, or are given for a connection that is plain text."""
    if not url.tls:
        if settings.ca_file or settings.cert_file:
            raise StoreError(
                f"store {url.where}: FARM_REDIS_CA_FILE or _CERT_FILE is given, but {url.scheme} is not TLS"
            )
        return
    context = ssl.create_default_context()
    try:
        if settings.ca_file:
            context.load_verify_locations(settings.ca_file)
    except (ssl.SSLError, OSError) as error:
        raise StoreError(f"store {url.where}: FARM_REDIS_CA_FILE holds no certificate in PEM") from error
    try:
        if settings.cert_file:
            context.load_cert_chain(settings.cert_file, settings.key_file, password=lambda: "")
    except (ssl.SSLError, OSError) as error:
        fix = "must hold a certificate and its unencrypted key, in PEM"
        raise StoreError(f"store {url.where}: FARM_REDIS_CERT_FILE and FARM_REDIS_KEY_FILE {fix}") from error


def _options(url: RedisUrl, settings: RedisSettings) -> dict[str, Any]:
    secret = settings.password.get_secret_value() if settings.password else None
    return {
        # RESP2: the same answers from every server, and no subscription to maintenance messages
        "protocol": 2,
        "socket_timeout": settings.timeout_s,
        "socket_connect_timeout": settings.connect_timeout_s,
        "retry": Retry(ExponentialBackoff(cap=_BACKOFF_CAP_S, base=_BACKOFF_S), settings.retries),
        **_credentials(url.username or settings.username, secret if url.password is None else url.password),
        **_tls(url, settings),
    }


def _sentinel_options(url: RedisUrl, settings: RedisSettings) -> dict[str, Any]:
    """One try at each sentinel: the next one is as good."""
    secret = settings.sentinel_password.get_secret_value() if settings.sentinel_password else None
    return {
        "protocol": 2,
        "socket_timeout": settings.timeout_s,
        "socket_connect_timeout": settings.connect_timeout_s,
        "retry": Retry(NoBackoff(), 0),
        **_credentials(settings.sentinel_username, secret),
        **_tls(url, settings),
    }


def _credentials(username: str | None, password: str | None) -> dict[str, Any]:
    """A provider instead of plain options, so that no repr and no traceback with local variables shows the password."""
    if username is None and password is None:
        return {}
    return {"credential_provider": UsernamePasswordCredentialProvider(username, password)}


def _tls(url: RedisUrl, settings: RedisSettings) -> dict[str, Any]:
    if not url.tls:
        return {}
    files = {"ca_certs": settings.ca_file, "certfile": settings.cert_file, "keyfile": settings.key_file}
    given = {f"ssl_{name}": str(path) for name, path in files.items() if path}
    return {"ssl": True, "ssl_check_hostname": True, "ssl_min_version": ssl.TLSVersion.TLSv1_2, **given}


class WaitingPool(ConnectionPool):
    """Waits for a connection when all are in use.  redis-py's blocking pool takes a lock for every command instead."""

    def __init__(self, *, wait_s: float, **options: Any) -> None:
        super().__init__(**options)
        self._wait_s = wait_s
        self._freed = asyncio.Event()

    async def get_connection(self, command_name: Any = None, *keys: Any, **options: Any) -> AbstractConnection:
        try:
            connection: AbstractConnection = await super().get_connection()
        except MaxConnectionsError:
            return await self._wait()
        return connection

    async def _wait(self) -> AbstractConnection:
        try:
            async with asyncio.timeout(self._wait_s):
                while True:
                    self._freed.clear()
                    await self._freed.wait()
                    with suppress(MaxConnectionsError):  # another one was faster
                        connection: AbstractConnection = await super().get_connection()
                        return connection
        except TimeoutError:
            raise MaxConnectionsError("all connections are in use") from None

    async def release(self, connection: AbstractConnection) -> None:
        await super().release(connection)
        self._freed.set()


class WaitingSentinelPool(SentinelConnectionPool, WaitingPool):
    """WaitingPool of connections to whom the sentinels name master."""


class _OneTry:
    """Connects once.  A command that fails is tried again, connecting included; tries within tries would multiply."""

    async def connect_check_health(self, check_health: bool = True, retry_socket_connect: bool = False) -> None:
        await super().connect_check_health(check_health, retry_socket_connect=False)  # type: ignore[misc]


class _Direct(_OneTry):
    """A connection to the server that the URL names."""

    async def connect(self) -> None:
        await self.connect_check_health()

    def pack_command(self, *args: Any) -> list[bytes]:
        """As redis-py's, in C: a request for 200 authors has as many arguments."""
        name, *rest = args  # "CLUSTER INFO", say, is two words to the server
        return [pack_command((*name.split(), *rest))]

    def pack_commands(self, commands: Iterable[Iterable[Any]]) -> list[bytes]:
        return [b"".join([self.pack_command(*command)[0] for command in commands])]

    async def send_packed_command(self, *args: Any, **options: Any) -> None:
        try:
            await super().send_packed_command(*args, **options)  # type: ignore[misc]
        except RuntimeError as error:  # uvloop's word for a transport that was closed meanwhile
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]
            raise RedisConnectionError(f"the connection is closed: {error}") from error

    async def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*args, **options)  # type: ignore[misc]
        except ReadOnlyError as error:
            # The master became a replica; its name may lead to another by now: connect anew and try again.
            raise RedisConnectionError("the server is a read-only replica") from error


class _Tcp(_Direct, Connection):
    pass


class _Tls(_Direct, SSLConnection):
    pass


class _Unix(_Direct, UnixDomainSocketConnection):
    pass


class _SentinelTcp(_OneTry, SentinelManagedConnection):
    async def connect(self) -> None:
        await self._connect_retry()


class _SentinelTls(_OneTry, SentinelManagedSSLConnection):
    async def connect(self) -> None:
        await self._connect_retry()
