"""Over a real Redis server: when events are answered, when the log pushes back, what the cache of authors shows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import numpy as np
import pytest
from prometheus_client import generate_latest
from service_facts import Client, make_empty_store

from feature_store.records import records_from_columns
from feature_store.store import open_store
from loadtest.redis_servers import Server, valkey

EVENT = {"type": "user", "user_id": 1}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with valkey() as running:
        yield running


def events(count: int) -> dict[str, object]:
    updated_at = int(1000 * time.time())
    return {"events": [{**EVENT, "updated_at": updated_at}] * count}


def test_accepted_is_in_the_log(opened: Client, store_url: str, server: Server) -> None:
    url = f"{server.url}?namespace=accepted"
    asyncio.run(make_empty_store(store_url, url))
    with opened(store=url) as (client, _):
        answer = client.post("/events", json=events(3))
        assert (answer.status_code, answer.json()["accepted"]) == (202, 3)
        with server.client() as direct:
            assert sum(direct.xlen(key) for key in direct.scan_iter("farm:accepted:log:*")) == 1


def test_a_full_log_pushes_back(
    opened: Client, store_url: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FARM_REDIS_MAX_LAG", "2")
    url = f"{server.url}?namespace=full"
    asyncio.run(make_empty_store(store_url, url))
    with opened(store=url) as (client, _):
        for _ in range(3):  # to the one partition of the user
            assert client.post("/events", json=events(1)).status_code == 202
        time.sleep(0.2)  # a lag that was read a moment ago may decide
        refused = client.post("/events", json=events(1))
        assert (refused.status_code, refused.json()["type"]) == (503, "urn:farm:problem:events-busy")
        assert int(refused.headers["retry-after"]) >= 1
        assert 'farm_events_rejected_total{reason="events-busy"} ' in generate_latest().decode()


def test_too_few_replicas_are_not_durable(
    opened: Client, store_url: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FARM_REDIS_DURABILITY", "replica")
    monkeypatch.setenv("FARM_REDIS_WAIT_MS", "20")
    url = f"{server.url}?namespace=alone"
    asyncio.run(make_empty_store(store_url, url))
    with opened(store=url) as (client, _):
        refused = client.post("/events", json=events(1))
        assert (refused.status_code, refused.json()["type"]) == (503, "urn:farm:problem:not-durable")
        assert int(refused.headers["retry-after"]) >= 1


async def say_room(url: str, author: int, room: int) -> None:
    """What another process writes."""
    async with open_store(url) as store:
        record = records_from_columns(store.schema, "author", {"author_id": [author], "live_id": [room]})
        await store.put_authors(record, np.array([1_700_000_000_000 + room]))


def test_a_room_that_is_named_is_looked_up_behind_the_cache(opened: Client, store_url: str, server: Server) -> None:
    url = f"{server.url}?namespace=rooms"
    asyncio.run(make_empty_store(store_url, url))
    asyncio.run(say_room(url, 5, 1))
    with opened(store=url) as (client, _):

        def room(candidate: object) -> int:
            answer = client.post("/rank", json={"user_id": 1, "candidates": [candidate]}).json()
            return answer["ranking"][0]["live_id"]

        assert room(5) == 1
        asyncio.run(say_room(url, 5, 2))
        assert room(5) == 1  # as it is kept in this process
        assert room({"author_id": 5, "live_id": 2}) == 2
        assert room(5) == 2  # because the store was asked for the room
