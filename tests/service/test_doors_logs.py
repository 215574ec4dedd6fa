"""Real requests to a real service, good, bad and deep: its answers show no insides, its logs no user and no secret."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from service_facts import make_empty_store

from loadtest.process import ServiceFailedError, ServiceProcess, running_service
from service.doors.keys import new_key

USER, AUTHOR, VIEW = 7_130_051_907_331, 7_130_051_907_332, 7_130_051_907_333
TOKEN = "farm_aaaa_" + "s" * 43
PASSWORD = "correct-horse-battery"
DEPTH = 100_000
JSON = {"content-type": "application/json", "authorization": f"Bearer {TOKEN}", "x-request-id": "mine"}
_TIME = 1_651_708_800_000


@pytest.fixture(scope="module")
def service(artifact: Path, store_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    url = f"lmdb://{tmp_path_factory.mktemp('empty') / 'store'}"
    asyncio.run(make_empty_store(store_url, url))
    with running_service(artifact, url) as running:
        yield running


def nested(inside: str, depth: int) -> bytes:
    """`inside` with a % for what is deep."""
    before, after = inside.split("%")
    return b"".join([before.encode(), b"[" * depth, b"]" * depth, after.encode()])


@pytest.mark.parametrize(
    ("path", "inside"),
    [
        ("/rank", "%"),
        ("/rank", '{"user_id": %, "candidates": [1]}'),
        ("/rank", '{"user_id": 1, "candidates": [%]}'),
        ("/rank", '{"user_id": 1, "candidates": [{"author_id": %}]}'),
        ("/events", "%"),
        ("/events", '{"events": [%]}'),
        ("/events", '{"events": [{"type": "user", "user_id": %, "updated_at": 1651708800000}]}'),
    ],
)
def test_a_deep_body_is_refused_by_the_parser(service: ServiceProcess, path: str, inside: str) -> None:
    """At depth 200 and 1,024, so what is less deep than those is refused for what it is."""
    with httpx.Client(base_url=service.url, trust_env=False) as client:
        answer = client.post(path, content=nested(inside, DEPTH), headers=JSON)
        assert (answer.status_code, answer.json()["type"]) == (400, "urn:farm:problem:malformed-body")
        for depth in (150, 190):
            told = client.post(path, content=nested(inside, depth), headers=JSON)
            assert (told.status_code, told.json()["type"]) == (422, "urn:farm:problem:invalid-request")
            assert len(told.content) < 2_000
        assert client.get("/livez").status_code == 200


def test_logs_hold_neither_users_nor_secrets(service: ServiceProcess) -> None:
    view = {"type": "live_view", "user_id": USER, "view_id": VIEW, "event_time": _TIME}
    bodies = {
        "/rank": [
            {"user_id": USER, "candidates": [AUTHOR], "debug": True},
            {"user_id": USER, "candidates": [{"author_id": AUTHOR, "live": 1}]},
            {"user_id": str(USER), "candidates": [str(AUTHOR)] * 2},
            {"user_id": USER, "candidates": [AUTHOR], "page": str(USER)},
        ],
        "/events": [{"events": [view]}, {"events": [{**view, "author_id": "x"}]}, {"events": [view], "user": USER}],
    }
    with httpx.Client(base_url=service.url, trust_env=False) as client:
        answers = [
            client.post(path, content=content, headers=JSON)
            for path, requests in bodies.items()
            for body in requests
            for content in (json.dumps(body), json.dumps(body)[:-1])
        ]
        answers += [client.get(f"/rank?user_id={USER}&key={TOKEN}", headers=JSON)]
    host, _, port = service.url.removeprefix("http://").partition(":")
    for raw in (
        b"GET /%d HTTP/9\r\n\r\n" % USER,
        f"POST /rank HTTP/1.1\r\nAuthorization: {TOKEN}\r\nbad {USER}: 1\r\n\r\n".encode(),
    ):
        with socket.create_connection((host, int(port)), 5.0) as connection:
            connection.sendall(raw)
            assert b" 400 " in connection.recv(4_096)
    assert {answer.status_code for answer in answers} >= {200, 202, 400, 405, 422}
    for answer in answers:
        assert not [word for word in ("Traceback", '.py"', "site-packages", TOKEN) if word in answer.text]
    assert service.stop() == 0
    assert service.process.stdout is not None
    service.errors.seek(0)
    written = service.process.stdout.read() + service.errors.read()
    assert not [secret for secret in (USER, AUTHOR, VIEW, TOKEN, TOKEN[10:]) if str(secret) in written]


def test_a_start_that_fails_does_not_tell_secrets(artifact: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = taken.getsockname()[1]
    _, key = new_key(["rank"])
    url = f"redis://farm:{PASSWORD}@127.0.0.1:{free}/0"
    environment = {"FARM_API_KEYS": key.line(), "FARM_REDIS_PASSWORD": PASSWORD, "FARM_PROVIDER": "abacus"}
    with pytest.raises(ServiceFailedError) as failed, running_service(artifact, url, **environment):
        pass
    without_store = environment | {"FARM_PROVIDER": "cpu"}
    with running_service(artifact, url, **without_store) as service:
        service.errors.seek(0)
        waits = service.errors.read()
    assert "answering without it" in waits
    for said in (failed.value.errors, waits):
        assert said.strip()
        assert PASSWORD not in said
        assert key.hash not in said
