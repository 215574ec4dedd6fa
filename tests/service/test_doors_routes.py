"""Every route of the real applications, found by enumerating their routers, asks for its key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from service_facts import Client, Facts
from starlette.routing import Route

from service.admin import create_admin
from service.app import create_app
from service.doors.door import ADMIN_ROUTES, ANYBODY, FREE, KNOWN, PUBLIC_ROUTES, Door, admin_door
from service.doors.doorway import Doorway
from service.doors.errors import ForbiddenError, UnauthorizedError
from service.doors.keys import Scope, new_key
from service.doors.ring import KeyRing, refuse_open
from service.errors import ServiceError
from service.scrape import Scrape
from service.supervisor import Place

SCOPES: tuple[Scope, ...] = ("rank", "events", "explain", "admin")
EXPIRED_AT = 2_000_000_000


@dataclass
class Workers:
    """As the supervisor has them."""

    places: list[Place] = field(default_factory=list)
    stopping: bool = False

    def wedged(self) -> list[Place]:
        return []


@dataclass
class Port:
    """An application behind its door."""

    routes: set[tuple[str, str]]
    needed: dict[tuple[str, str], str]
    client: TestClient


@pytest.fixture(scope="module")
def keys() -> dict[str, tuple[str, str]]:
    """By scope: a key, and the line that the service has of it."""
    made = {scope: new_key([scope]) for scope in SCOPES}
    return {scope: (key, stored.line()) for scope, (key, stored) in made.items()}


@pytest.fixture(scope="module")
def ring(keys: dict[str, tuple[str, str]]) -> KeyRing:
    return KeyRing(lines="\n".join(line for _, line in keys.values()))


@pytest.fixture(scope="module")
def public(facts: Facts, opened: Client, ring: KeyRing) -> Iterator[Port]:
    with opened() as (_, runtime):
        app = create_app(runtime)
        routed = framework(app)
        door = Doorway(app, Door(ring), routed.exception_handlers[ServiceError])
        with TestClient(door, raise_server_exceptions=False) as client:
            yield Port(enumerated(routed), dict(PUBLIC_ROUTES), client)


@pytest.fixture(scope="module")
def admin(ring: KeyRing, tmp_path_factory: pytest.TempPathFactory) -> Port:
    app = create_admin(Workers(), Scrape(tmp_path_factory.mktemp("metrics")))
    door = Doorway(app, admin_door(ring), framework(app).exception_handlers[ServiceError])
    routes = enumerated(framework(app))
    return Port(routes, {route: ADMIN_ROUTES.get(route, "admin") for route in routes}, TestClient(door))


@pytest.fixture(params=["public", "admin"])
def port(request: pytest.FixtureRequest) -> Port:
    found: Port = request.getfixturevalue(request.param)
    return found


def test_the_table_names_every_route_of_the_public_port(public: Port) -> None:
    assert public.routes == set(PUBLIC_ROUTES)


def test_the_free_routes_of_the_admin_port_are_there(admin: Port) -> None:
    assert set(ADMIN_ROUTES) < admin.routes
    assert {route for route, needed in admin.needed.items() if needed == FREE} == {
        ("GET", "/livez"),
        ("GET", "/readyz"),
    }
    assert {("GET", "/metrics"), ("GET", "/workers"), ("GET", "/version")} < admin.routes


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "Bearer farm_", "Basic {rank}", "{rank}", "Bearer {rank}x", "Bearer {other}"],
)
def test_without_a_good_key_every_other_route_is_a_401(
    port: Port, keys: dict[str, tuple[str, str]], header: str | None
) -> None:
    given = None if header is None else header.format(rank=keys["rank"][0], other=new_key(SCOPES)[0])
    for (method, path), needed in port.needed.items():
        answer = ask(port, method, path, given)
        if needed == FREE:
            assert answer.status_code in (200, 503), path
            continue
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), (method, path)
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["type"] == "urn:farm:problem:unauthorized"


@pytest.mark.parametrize("scope", SCOPES)
def test_a_key_of_another_scope_is_a_403(port: Port, keys: dict[str, tuple[str, str]], scope: str) -> None:
    seen = set()
    for (method, path), needed in port.needed.items():
        answer = ask(port, method, path, f"Bearer {keys[scope][0]}")
        refused = needed not in (FREE, KNOWN, scope)
        assert (answer.status_code == 403) == refused, (method, path, answer.text)
        assert answer.status_code != 401
        if refused:
            assert answer.json()["detail"] == f"this key has not the scope {needed}, which the request needs"
            seen.add(path)
    assert seen or scope == "admin"


def test_unknown_paths_and_methods_are_told_to_nobody_without_a_key(
    port: Port, keys: dict[str, tuple[str, str]]
) -> None:
    for method, path in (
        ("GET", "/secret"),
        ("POST", "/livez"),
        ("GET", "//rank"),
        ("GET", "/Livez"),
        ("PUT", "/rank"),
    ):
        assert ask(port, method, path, None).status_code == 401
        assert ask(port, method, path, f"Bearer {keys['admin'][0]}").status_code in (404, 405)


def test_paths_are_compared_as_they_are_routed(public: Port) -> None:
    """A path in another spelling is never let in by one and answered by the other."""
    for path in ("/%72ank", "/rank/", "/./rank", "/livez/../rank", "/rank?x=/livez", "/livez%2f..%2frank"):
        assert ask(public, "POST", path, None).status_code == 401, path


def test_a_key_ranks(public: Port, keys: dict[str, tuple[str, str]], facts: Facts) -> None:
    body = {"user_id": facts.users[0], "candidates": facts.authors[:3]}
    answer = public.client.post("/rank", json=body, headers={"authorization": f"bearer {keys['rank'][0]}"})
    assert answer.status_code == 200


def test_a_key_expires() -> None:
    key, stored = new_key(["rank"], expires=datetime.fromtimestamp(EXPIRED_AT, UTC))
    headers = [(b"authorization", b"Bearer " + key.encode())]
    ring = KeyRing(lines=stored.line())
    caller = Door(ring, wall_clock=lambda: EXPIRED_AT - 1).check("/rank", "POST", headers)
    assert (caller.id, caller.scopes, caller.limit) == (stored.id, {"rank"}, None)
    with pytest.raises(ForbiddenError, match="has not the scope explain"):
        caller.require("explain")
    with pytest.raises(UnauthorizedError, match="this key has expired"):
        Door(ring, wall_clock=lambda: EXPIRED_AT).check("/rank", "POST", headers)


def test_without_keys_all_may_do_all() -> None:
    caller = Door(KeyRing()).check("/rank", "POST", [])
    assert caller is ANYBODY
    for scope in SCOPES:
        caller.require(scope)


@pytest.mark.parametrize(
    ("address", "configured", "may_be_open", "refused"),
    [
        ("127.0.0.1", False, False, False),
        ("127.8.0.1", False, False, False),
        ("::1", False, False, False),
        ("0.0.0.0", False, False, True),
        ("::", False, False, True),
        ("10.0.0.7", False, False, True),
        ("fe80::1%2", False, False, True),
        ("0.0.0.0", False, True, False),
        ("0.0.0.0", True, False, False),
    ],
)
def test_an_open_service_stays_on_this_machine(
    ring: KeyRing, address: str, configured: bool, may_be_open: bool, refused: bool
) -> None:
    with pytest.raises(ValueError, match=f"--host {address} lets everybody in") if refused else nullcontext():
        refuse_open(address, ring if configured else KeyRing(), may_be_open, "--host")


def framework(app: Any) -> FastAPI:
    """Inside the layers around it."""
    while not isinstance(app, FastAPI):
        app = app._app
    return app


def enumerated(app: FastAPI) -> set[tuple[str, str]]:
    """(method, path) of every route; HEAD goes with GET, where the framework adds it."""
    routes = [route for route in app.routes if isinstance(route, (Route, APIRoute))]
    assert len(routes) == len(app.routes), "a route of another kind: say here what is asked of it"
    return {(method, route.path) for route in routes for method in (route.methods or ()) if method != "HEAD"}


def ask(port: Port, method: str, path: str, authorization: str | None) -> Any:
    headers = {"content-type": "application/json"} | ({} if authorization is None else {"authorization": authorization})
    return port.client.request(method, path, content=json.dumps({}), headers=headers)
