"""What went wrong with a server, in one line that says what to do.  No message holds a secret or stored data."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from redis import exceptions
from redis.asyncio.sentinel import MasterNotFoundError

from feature_store.store import StoreError, StoreUnreachable

REDIS_ERRORS = (exceptions.RedisError, exceptions.RedisClusterException, OSError, TimeoutError)
"""Whatever the client library raises when a server, or the way to it, fails."""

ACL_RULES = "~farm:* +@read +@write +@connection +@scripting -@dangerous +info +cluster|slots +cluster|info +role +time"
"""What a FARM user of the server needs, for ACL SETUSER."""

_CLIENT_FILES = "FARM_REDIS_CERT_FILE and FARM_REDIS_KEY_FILE"

_LINES: tuple[tuple[type[BaseException], Callable[[BaseException], str]], ...] = (
    (ssl.SSLCertVerificationError, lambda e: _untrusted(e)),
    (ssl.SSLError, lambda e: _tls(e)),
    (socket.gaierror, lambda _: "unknown host; check the name in the URL"),
    (ConnectionRefusedError, lambda _: "connection refused; does the server run, at this port?"),
    (FileNotFoundError, lambda _: "there is no such socket; does the server run?"),
    (PermissionError, lambda _: "the socket may not be opened by this user"),
    (exceptions.AuthenticationWrongNumberOfArgsError, lambda _: "the server knows no user names; give only a password"),
    (exceptions.AuthenticationError, lambda e: _password(e)),
    (
        exceptions.NoPermissionError,
        lambda e: f"the user lacks a permission ({_text(e)}); it needs: ACL SETUSER <user> {ACL_RULES}",
    ),
    (exceptions.ReadOnlyError, lambda _: "the server is a read-only replica; give the address of the master"),
    (exceptions.OutOfMemoryError, lambda _: "the server's memory is full (maxmemory), so it refuses writes"),
    (exceptions.BusyLoadingError, lambda _: "the server is still loading its data; try again later"),
    (exceptions.SlotNotCoveredError, lambda _: "the cluster is not complete: some slots have no master"),
    (exceptions.ClusterDownError, lambda _: "the cluster is down: some slots have no master"),
    (exceptions.MovedError, lambda _: "the server is a node of a cluster; use redis+cluster://host:port"),
    (exceptions.MaxConnectionsError, lambda _: "all connections are in use; raise FARM_REDIS_MAX_CONNECTIONS"),
    (
        exceptions.InvalidResponse,
        lambda _: "the answer is not of the Redis protocol; if the port speaks TLS, use rediss",
    ),
    (exceptions.TimeoutError, lambda _: "no answer in time (FARM_REDIS_TIMEOUT_S, FARM_REDIS_CONNECT_TIMEOUT_S)"),
    (TimeoutError, lambda _: "no answer in time (FARM_REDIS_TIMEOUT_S, FARM_REDIS_CONNECT_TIMEOUT_S)"),
    (exceptions.RedisClusterException, lambda e: _cluster(e)),
    (MasterNotFoundError, lambda _: "the sentinels name no master of this name that is up"),
    (exceptions.ConnectionError, lambda e: f"the connection broke ({_text(e)})"),
    (OSError, lambda e: f"the connection broke ({_text(e)})"),
    (exceptions.ResponseError, lambda e: _refused(e)),
)
"""Most telling first: the first kind that is found anywhere in the chain of causes."""

_UNREACHABLE = frozenset(
    {
        socket.gaierror,
        ConnectionRefusedError,
        FileNotFoundError,
        exceptions.BusyLoadingError,
        exceptions.SlotNotCoveredError,
        exceptions.ClusterDownError,
        exceptions.TimeoutError,
        TimeoutError,
        MasterNotFoundError,
        exceptions.ConnectionError,
        OSError,
    }
)
"""Kinds that may go away by themselves: the server is away, or on its way."""


def as_store_error(error: BaseException, where: str) -> StoreError:
    """One line for whoever runs it.  where: RedisUrl.where.  `raise as_store_error(e, where) from e`."""
    if isinstance(error, StoreError):
        return error
    chain = list(_chain(error))
    for kind, line in _LINES:
        for cause in chain:
            if isinstance(cause, kind):
                made = StoreUnreachable if kind in _UNREACHABLE else StoreError
                return made(f"store {where}: {_node(chain, where)}{line(cause)}")
    return StoreError(f"store {where}: {_text(error)}")


@contextmanager
def store_errors(where: str) -> Iterator[None]:
    """Turns what the client library raises inside into one StoreError."""
    try:
        yield
    except REDIS_ERRORS as error:
        raise as_store_error(error, where) from error


def first_contact(error: BaseException, where: str) -> StoreError:
    """as_store_error for the first command to a server, where silence or a hang-up hints at TLS against plain text."""
    found = as_store_error(error, where)
    if any(isinstance(cause, ssl.SSLError | ConnectionRefusedError | StoreError) for cause in _chain(error)):
        return found
    broke, late = "connection broke" in str(found), "in time" in str(found)
    if broke and not where.startswith(("rediss", "unix")):
        return type(found)(f"{found}; if the port speaks TLS, use {where.replace('redis', 'rediss', 1)}")
    if broke and where.startswith("rediss"):  # after the handshake, or it would be an SSLError
        return type(found)(f"{found}; if the server asks for a client certificate, set {_CLIENT_FILES}")
    if late and where.startswith("rediss"):
        return type(found)(f"{found}; if the port does not speak TLS, use {where.replace('rediss', 'redis', 1)}")
    return found


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _node(chain: list[BaseException], where: str) -> str:
    """Which of several servers cannot be reached, as redis-py tells it."""
    found = next((match for error in chain if (match := re.search(r"connecting to (\S+:\d+)", str(error)))), None)
    return f"{found[1]}: " if found and "," in where else ""


def _text(error: BaseException) -> str:
    """Its message in one line, without the command that redis-py puts before it: commands hold users' data."""
    text = re.sub(r"(?s)^.*of pipeline caused error: ", "", str(error)) or type(error).__name__
    return " ".join(text.split())[:200].strip("()',\" .")


def _untrusted(error: BaseException) -> str:
    reason = getattr(error, "verify_message", "") or _text(error)
    return f"the server's certificate is not trusted ({reason}); set FARM_REDIS_CA_FILE to the authority that signed it"


def _tls(error: BaseException) -> str:
    reason = getattr(error, "reason", None) or _text(error)
    if "CERTIFICATE_REQUIRED" in reason or "HANDSHAKE_FAILURE" in reason:
        return f"the server asks for a client certificate; set {_CLIENT_FILES}"
    if "UNKNOWN_CA" in reason or "BAD_CERTIFICATE" in reason:
        return "the server does not trust the certificate of this client (FARM_REDIS_CERT_FILE)"
    return f"no TLS connection ({reason}); does the port speak TLS?  without it the scheme is redis, not rediss"


def _password(error: BaseException) -> str:
    text = str(error)
    if getattr(error, "status_code", "") == "NOAUTH" or "Authentication required" in text:
        return "the server asks for a password; set FARM_REDIS_PASSWORD (and FARM_REDIS_USERNAME)"
    if "without any password configured" in text or "no password is set" in text:
        return "a password is given, but the server has none for the default user"
    return "wrong user name or password (FARM_REDIS_USERNAME, FARM_REDIS_PASSWORD, or those in the URL)"


def _refused(error: BaseException) -> str:
    text = _text(error)
    return (
        "the hosts are no sentinels; use redis://host:port" if "'SENTINEL'" in text else f"the server refused ({text})"
    )


def _cluster(error: BaseException) -> str:
    text = _text(error)
    if "not enabled" in text:
        return "the server is no node of a cluster; use redis://host:port"
    covered = re.search(r"(\d+) of (\d+) covered", text)
    if covered:
        return f"the cluster is not complete: {covered[1]} of {covered[2]} slots have a master"
    return f"the cluster cannot be used ({text})"
