"""POST /events into LMDB: what is accepted is in the next ranking; what is refused leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from prometheus_client import generate_latest
from service_facts import Client, make_empty_store

from feature_store.schema import RecordSchema
from service.app import create_app
from service.runtime import Runtime, load_runtime
from service.settings import Settings

USER, AUTHOR = 17, 301
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def empty_store(store_url: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    url = f"lmdb://{tmp_path_factory.mktemp('events') / 'store'}"
    asyncio.run(make_empty_store(store_url, url))
    return url


@pytest.fixture(scope="module")
def app(opened: Client, empty_store: str) -> Iterator[tuple[TestClient, Runtime]]:
    with opened(store=empty_store, max_events_body_bytes=200_000) as both:
        yield both


@pytest.fixture
def client(app: tuple[TestClient, Runtime]) -> TestClient:
    return app[0]


@pytest.fixture
def schema(app: tuple[TestClient, Runtime]) -> RecordSchema:
    return app[1].store.schema


def clock() -> int:
    return int(1000 * time.time())


def view(kind: str = "live_view", age_ms: int = 60_000, **fields: object) -> dict[str, object]:
    return {"type": kind, "user_id": USER, "view_id": 1, "event_time": clock() - age_ms, "author_id": AUTHOR, **fields}


def send(client: TestClient, *events: dict[str, object]) -> httpx.Response:
    return client.post("/events", json={"events": list(events)})


def debug(client: TestClient, user_id: object = USER, **more: object) -> dict[str, Any]:
    answer = client.post("/rank", json={"user_id": user_id, "candidates": [AUTHOR], "debug": True, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()["debug"]


def count(client: TestClient, series: str) -> float:
    lines = generate_latest().decode().splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{series} ")), 0.0)


def test_accepted_events_are_in_the_next_ranking(client: TestClient) -> None:
    user, author = 5000, 5001
    before = client.post("/rank", json={"user_id": user, "candidates": [author]}).json()
    assert before["degraded"] == ["no_history", "unknown_authors"]
    assert "debug" not in before
    now_ms = clock()
    answer = send(
        client,
        view("video_view", user_id=user, known_at=now_ms - 9_000),
        view("live_view", user_id=str(user), known_at=now_ms - 5_000, behaviours=["click"]),
        {"type": "author", "author_id": author, "live_id": "9007199254740993", "updated_at": now_ms},
        {"type": "user", "user_id": user, "updated_at": now_ms},
    )
    assert answer.status_code == 202, answer.text
    assert answer.json() == {"accepted": 4, "request_id": answer.headers["x-request-id"]}
    after = client.post("/rank", json={"user_id": user, "candidates": [author], "debug": True, "now_ms": now_ms}).json()
    assert after["degraded"] == []
    assert after["ranking"][0]["live_id"] == "9007199254740993"
    assert after["debug"]["user"]["known"]
    assert after["debug"]["user"]["version"] > 0
    assert after["debug"]["video"] == {"events": 1, "stored": 1, "newest_age_ms": 9_000}
    assert after["debug"]["live"] == {"events": 1, "stored": 1, "newest_age_ms": 5_000}


def test_debug_of_an_unknown_user(client: TestClient) -> None:
    nothing = {"events": 0, "stored": 0, "newest_age_ms": None}
    assert debug(client, 999) == {"user": {"known": False, "version": 0}, "video": nothing, "live": nothing}
    plain = client.post("/rank", json={"user_id": 999, "candidates": [1], "debug": None}).json()
    assert "debug" not in plain


def test_later_acts_join_their_view(client: TestClient) -> None:
    user, start = 5100, clock() - 60_000
    going_on = view(user_id=user, view_id=7, event_time=start, behaviours=["click"])
    assert send(client, going_on).status_code == 202
    assert debug(client, user)["live"] == {"events": 0, "stored": 1, "newest_age_ms": None}
    ended = {**going_on, "known_at": start + 40_000, "play_time": 40_000, "behaviours": ["like"]}
    assert send(client, ended).status_code == 202
    assert debug(client, user, now_ms=start + 41_000)["live"] == {"events": 1, "stored": 1, "newest_age_ms": 1_000}
    assert debug(client, user, now_ms=start + 39_000)["live"] == {"events": 0, "stored": 1, "newest_age_ms": -1_000}


def test_a_request_may_be_sent_again(client: TestClient) -> None:
    user, now_ms = 5200, clock()
    events = [view(user_id=user, view_id=i, known_at=now_ms - i) for i in range(1, 4)]
    for _ in range(2):
        assert send(client, *events, *reversed(events)).json()["accepted"] == 6
    assert debug(client, user, now_ms=now_ms)["live"] == {"events": 3, "stored": 3, "newest_age_ms": 1}


def test_a_thousand_events(client: TestClient) -> None:
    events = [view(user_id=6000 + i // 2, view_id=i) for i in range(1000)]
    assert send(client, *events).json()["accepted"] == 1000
    assert debug(client, 6499)["live"]["stored"] == 2
    refused = send(client, *events, view())
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "events")
    assert "1000" in refused.json()["detail"]


INVALID = [
    ({"event_time": 1_700_000_000}, "events[1].event_time"),
    ({"event_time": clock() + 10 * 365 * 86_400_000}, "events[1].event_time"),
    ({"known_at": clock() - 10**9}, "events[1].known_at"),
    ({"type": "ad_view"}, "events[1].type"),
    ({"room": 5}, "events[1].room"),
    ({"behaviours": ["dance"]}, "events[1].behaviours"),
    ({"view_id": None}, "events[1].view_id"),
    ({"user_id": 1.5}, "events[1].user_id"),
    ({"author_id": "abc"}, "events[1].author_id"),
    ({"play_time": 2**40}, "events[1].play_time"),
]


@pytest.mark.parametrize(("wrong", "field"), INVALID)
def test_a_wrong_field_is_named_and_nothing_is_kept(client: TestClient, wrong: dict[str, object], field: str) -> None:
    refused = send(client, view(user_id=5300), {**view(user_id=5300), **wrong})
    assert refused.status_code == 422, refused.text
    content = refused.json()
    assert content["type"] == "urn:farm:problem:invalid-request"
    assert [error["field"].split("[", 2)[:2] for error in content["errors"]] == [field.split("[", 2)[:2]]
    assert content["errors"][0]["field"].startswith(field)
    assert not debug(client, 5300)["user"]["known"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ([], "body"),
        ("x", "body"),
        ({}, "events"),
        ({"events": {}}, "events"),
        ({"events": None}, "events"),
        ({"events": []}, "events"),
        ({"events": [5]}, "events[0]"),
        ({"events": [{"type": "user"}], "user": 1}, "user"),
    ],
)
def test_what_is_no_request(client: TestClient, body: object, field: str) -> None:
    refused = client.post("/events", json=body)
    assert (refused.status_code, refused.headers["content-type"]) == (422, "application/problem+json")
    assert refused.json()["errors"][0]["field"] == field


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 5000, b'{"events": [NaN]}'])
def test_malformed_json(client: TestClient, body: bytes) -> None:
    refused = client.post("/events", content=body, headers=JSON)
    assert (refused.status_code, refused.json()["type"]) == (400, "urn:farm:problem:malformed-body")


def test_its_own_limit_of_the_body(client: TestClient) -> None:
    body = json.dumps({"events": [view()]}).encode()
    assert client.post("/events", content=body.ljust(200_000), headers=JSON).status_code == 202
    refused = client.post("/events", content=body.ljust(200_001), headers=JSON)
    assert (refused.status_code, refused.json()["errors"][0]["message"]) == (413, "must be at most 200000 bytes")
    assert client.post("/events", content=body, headers={"Content-Type": "text/plain"}).status_code == 415


def test_events_are_counted(client: TestClient) -> None:
    series = [f'farm_events_accepted_total{{type="{kind}"}}' for kind in ("video_view", "live_view", "author", "user")]
    rejected = 'farm_events_rejected_total{reason="invalid-request"}'
    names = [*series, rejected, "farm_event_visible_seconds_count"]
    before = [count(client, name) for name in names]
    send(client, view("video_view"), view("live_view"), view("live_view", view_id=2))
    send(client, {"type": "user", "user_id": 1, "updated_at": 1})
    after = [count(client, name) for name in names]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 2, 0, 0, 1, 1]
    assert count(client, 'farm_http_requests_total{route="/events",status="202"}') > 0


def test_string_ids(opened: Client, store_url: str, tmp_path: Path) -> None:
    url = f"lmdb://{tmp_path / 'strings'}"
    asyncio.run(make_empty_store(store_url, url, ids="string"))
    with opened(store=url) as (client, _):
        assert send(client, view(user_id="Ünï/1", view_id="v", author_id="a,b")).status_code == 202
        assert debug(client, "Ünï/1")["live"]["stored"] == 1


def test_a_store_that_fails_is_a_503(opened: Client, store_url: str, tmp_path: Path) -> None:
    url = f"lmdb://{tmp_path / 'store'}"
    asyncio.run(make_empty_store(store_url, url))
    with opened(store=url) as (client, runtime):
        client.portal.call(runtime.store.close)
        failed = send(client, view())
        assert (failed.status_code, failed.headers["retry-after"]) == (503, "1")
        assert failed.json()["type"] == "urn:farm:problem:store-unavailable"
        assert str(tmp_path) not in failed.text
        assert count(client, 'farm_events_rejected_total{reason="store-unavailable"}') >= 1


def test_parsing_holds_up_nothing(artifact: Path, store_url: str, tmp_path: Path) -> None:
    async def check() -> None:
        url = f"lmdb://{tmp_path / 'store'}"
        await make_empty_store(store_url, url)
        runtime = load_runtime(Settings(artifact=artifact, store=url, executors=1))
        free = threading.Event()
        runtime.pool.submit(free.wait)
        transport = httpx.ASGITransport(create_app(runtime))
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            waiting = asyncio.create_task(client.post("/events", json={"events": [view()]}))
            await asyncio.sleep(0.1)
            assert (await client.get("/livez")).status_code == 200
            assert not waiting.done()
            free.set()
            assert (await waiting).status_code == 202
        await runtime.close()

    asyncio.run(check())
