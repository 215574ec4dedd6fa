"""Which route asks for which scope, and who may pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import get_args

from service.doors.errors import ForbiddenError, UnauthorizedError
from service.doors.keys import Scope
from service.doors.metrics import count_refused_key
from service.doors.ring import KeyRing

FREE = "free"  # for everybody: what load balancers ask
KNOWN = "known"  # for any good key

PUBLIC_ROUTES: Mapping[tuple[str, str], str] = {
    ("POST", "/rank"): "rank",  # with `debug` it needs the scope explain too
    ("POST", "/events"): "events",
    ("GET", "/livez"): FREE,
    ("GET", "/readyz"): FREE,
    ("GET", "/version"): KNOWN,
    ("GET", "/openapi.json"): KNOWN,
    ("GET", "/docs"): KNOWN,
    ("GET", "/docs/oauth2-redirect"): KNOWN,
    ("GET", "/redoc"): KNOWN,
}
"""Of the public port.  What is not here, an unknown path or method too, is KNOWN."""

ADMIN_ROUTES: Mapping[tuple[str, str], str] = {("GET", "/livez"): FREE, ("GET", "/readyz"): FREE}
"""Of the admin port.  What is not here needs the scope admin."""


@dataclass(frozen=True)
class Caller:
    """Who makes a request."""

    id: str  # of the key; "" when the service is open
    scopes: frozenset[str]
    limit: int | None  # requests at one time, of one worker

    def require(self, scope: Scope) -> None:
        """ForbiddenError when the key lacks the scope."""
        if scope not in self.scopes:
            count_refused_key(ForbiddenError.type)
            raise ForbiddenError(f"this key has not the scope {scope}, which the request needs")


ANYBODY = Caller("", frozenset(get_args(Scope)), None)


class Door:
    """Of one port."""

    def __init__(
        self,
        ring: KeyRing,
        routes: Mapping[tuple[str, str], str] = PUBLIC_ROUTES,
        otherwise: str = KNOWN,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """otherwise: what a route needs that is not in `routes`.  wall_clock: s since 1970, for keys that expire."""
        self._ring, self._routes, self._otherwise, self._wall_clock = ring, routes, otherwise, wall_clock

    def check(self, path: str, method: str, headers: Iterable[tuple[bytes, bytes]]) -> Caller:
        """Who asks.  UnauthorizedError without a good key, ForbiddenError when it lacks the scope of the route.

        headers: names in lower case.
        """
        needed = self._routes.get((method, path), self._otherwise)
        if needed == FREE or not self._ring.configured:
            return ANYBODY
        caller = self._caller(headers)
        if needed != KNOWN:
            caller.require(needed)  # type: ignore[arg-type]  # the tables hold scopes
        return caller

    def _caller(self, headers: Iterable[tuple[bytes, bytes]]) -> Caller:
        given = next((value for name, value in headers if name == b"authorization"), None)
        if given is None:
            raise _refused("there is no key; send the header Authorization: Bearer farm_...")
        kind, _, token = given.partition(b" ")
        key = self._ring.find(token.strip()) if kind.lower() == b"bearer" else None
        if key is None:
            raise _refused("this is not a key of the service; send Authorization: Bearer farm_...")
        if key.expires is not None and key.expires.timestamp() <= self._wall_clock():
            raise _refused("this key has expired")
        return Caller(key.id, key.scopes, key.limit)


def admin_door(ring: KeyRing) -> Door:
    return Door(ring, ADMIN_ROUTES, "admin")


def _refused(detail: str) -> UnauthorizedError:
    count_refused_key(UnauthorizedError.type)
    return UnauthorizedError(detail)
