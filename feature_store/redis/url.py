"""URLs of Redis stores.

    redis://[user:password@]host[:port][/db]          rediss:// with TLS
    unix://[user:password@]/path/of.sock              redis+unix:// too
    redis+sentinel://h1[:p1],h2[:p2]/<master>[/db]    rediss+sentinel:// with TLS
    redis+cluster://h1[:p1],h2[:p2]                   rediss+cluster:// with TLS
    ?namespace=<name>  everywhere, ?db=<n> where there are databases

Errors name neither user nor password, nor anything of a URL that could not be read: it may be a misplaced password.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal, NoReturn
from urllib.parse import parse_qsl, unquote, urlsplit

from feature_store.redis.settings import NAMESPACE_PATTERN
from feature_store.store import StoreError

Kind = Literal["plain", "unix", "sentinel", "cluster"]
SCHEMES: dict[str, tuple[Kind, bool]] = {
    "redis": ("plain", False),
    "rediss": ("plain", True),
    "unix": ("unix", False),
    "redis+unix": ("unix", False),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
}
"""What each scheme means, and whether with TLS."""

_PORT, _SENTINEL_PORT = 6379, 26_379
_ENCODE = "in user names and passwords write %40 for @, %2F for /, %3F for ?, %23 for #"


@dataclass(frozen=True)
class RedisUrl:
    """Where a store is and as whom to go there."""

    scheme: str
    hosts: tuple[tuple[str, int], ...] = ()  # of the server, the sentinels, or some nodes of the cluster
    path: str = ""  # of the unix socket
    master: str = ""  # name that the sentinels know
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    namespace: str | None = None

    @property
    def kind(self) -> Kind:
        return SCHEMES[self.scheme][0]

    @property
    def tls(self) -> bool:
        return SCHEMES[self.scheme][1]

    @property
    def where(self) -> str:
        """The URL without user, password and options, for messages."""
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        master = f"/{self.master}" if self.master else ""
        db = f"/{self.db}" if self.db and self.kind != "unix" else ""
        return f"{self.scheme}://{hosts}{self.path}{master}{db}"


def parse_url(url: str) -> RedisUrl:
    """Read a URL; StoreError says what is wrong with it, and shows nothing secret."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in SCHEMES:
        raise StoreError(
            f"store {redact(url)}: not a Redis URL; known are {', '.join(f'{name}://' for name in SCHEMES)}"
        )
    rest, _, query = rest.partition("?")
    if "@" in query or "#" in url:
        _refuse(scheme, _ENCODE)
    options = _options(scheme, query)
    user, place = _split_user(scheme, rest)
    name, colon, password = user.partition(":")
    found = _unix(scheme, place) if SCHEMES[scheme][0] == "unix" else _hosts(scheme, place)
    return RedisUrl(
        scheme,
        db=_number(scheme, options["db"]) if "db" in options else found.db,
        hosts=found.hosts,
        path=found.path,
        master=found.master,
        username=unquote(name) or None,
        password=unquote(password) if colon else None,
        namespace=options.get("namespace"),
    )


def redact(url: str) -> str:
    """The URL of any store without user, password and options; of one that cannot be read only the scheme."""
    scheme, separator, _ = url.partition("://")
    if scheme == "lmdb":
        return url
    if not separator or scheme not in SCHEMES:
        return f"{scheme}://***" if separator else "***"
    try:
        return parse_url(url).where
    except StoreError:
        return f"{scheme}://***"


def _refuse(scheme: str, reason: str) -> NoReturn:
    raise StoreError(f"store {scheme}://...: {reason}")


def _options(scheme: str, query: str) -> dict[str, str]:
    options = dict(parse_qsl(query, keep_blank_values=True))
    known = {"namespace"} if SCHEMES[scheme][0] == "cluster" else {"namespace", "db"}
    if set(options) - known:
        _refuse(scheme, f"the URL has an unknown option; known are {', '.join(sorted(known))}")
    if "namespace" in options and not re.fullmatch(NAMESPACE_PATTERN, options["namespace"]):
        _refuse(scheme, "namespace must be 1 to 32 of a-z, 0-9, _ and -")
    return options


def _split_user(scheme: str, rest: str) -> tuple[str, str]:
    if SCHEMES[scheme][0] != "unix":
        user, _, place = rest.rpartition("@")
        return user, place
    if rest.startswith("/"):
        return "", rest
    user, at, path = rest.partition("@/")
    return (user, f"/{path}") if at else ("", rest)


def _unix(scheme: str, place: str) -> RedisUrl:
    if not place.startswith("/") or place == "/":
        _refuse(scheme, "the path of the socket is missing, as in unix:///run/redis/redis.sock")
    return RedisUrl(scheme, path=unquote(place))


def _hosts(scheme: str, place: str) -> RedisUrl:
    kind = SCHEMES[scheme][0]
    hosts, _, tail = place.partition("/")
    parts = [unquote(part) for part in tail.split("/") if part]
    master = parts.pop(0) if kind == "sentinel" and parts else ""
    if kind == "sentinel" and not master:
        _refuse(scheme, "the name of the master is missing, as in redis+sentinel://host:26379/mymaster")
    if kind == "cluster" and parts not in ([], ["0"]):
        _refuse(scheme, "a cluster has only database 0")
    if len(parts) > 1:
        _refuse(scheme, "the path has too many parts")
    listed = hosts.split(",")
    if kind == "plain" and len(listed) > 1:
        _refuse(scheme, "several hosts need redis+sentinel:// or redis+cluster://")
    port = _SENTINEL_PORT if kind == "sentinel" else _PORT
    addresses = tuple(_address(scheme, item, number, port) for number, item in enumerate(listed, start=1))
    return RedisUrl(scheme, addresses, master=master, db=_number(scheme, parts[0]) if parts else 0)


def _address(scheme: str, item: str, number: int, port: int) -> tuple[str, int]:
    try:
        split = urlsplit(f"//{item}")
        if split.hostname and split.port != 0:
            return split.hostname, split.port or port
    except ValueError:  # of the port, or of the brackets of an IPv6 address
        pass
    _refuse(scheme, f"host {number} must be host or host:port; {_ENCODE}")


def _number(scheme: str, text: str) -> int:
    if not re.fullmatch(r"\d{1,5}", text, re.ASCII):
        _refuse(scheme, "the database must be a number, as in redis://host:6379/0")
    return int(text)
