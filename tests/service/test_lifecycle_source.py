"""A store that cannot be reached when the service starts: a real server that comes later."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from service_facts import Client

from feature_store.absent import AbsentStore
from feature_store.reading.settings import ReadingSettings
from feature_store.schema import RecordSchema, default_schema
from feature_store.store import StoreError, StoreUnreachable, open_store
from loadtest.redis_servers import Server, valkey, wait_until
from model.datasets.prepared import Prepared
from model.materialize import materialize
from service.lifecycle.source import SourceKeeper

EVENT = {"type": "author", "author_id": 7, "live_id": 70, "updated_at": 1_700_000_000_000}
SETTINGS = ReadingSettings(failures_in_row=1000)


@pytest.fixture
def away() -> Iterator[Server]:
    """A server that holds its port, and does not run until it is started again."""
    with valkey() as server:
        server.kill()
        yield server


def test_nothing_there_is_unreachable(away: Server) -> None:
    with pytest.raises(StoreUnreachable, match="connection refused"):
        open_store(away.url)


def test_what_will_not_go_away_is_told_at_once(away: Server) -> None:
    away.restart()
    with pytest.raises(StoreError, match="no store at"):
        SourceKeeper(away.url, SETTINGS, default_schema())
    with pytest.raises(StoreError, match="unknown scheme"):
        SourceKeeper("mongodb://somewhere", SETTINGS, default_schema())


def test_the_service_answers_without_it_and_takes_it_when_it_comes(
    opened: Client, away: Server, prepared: Prepared
) -> None:
    user = int(prepared.user_ids()[0])
    authors = sorted(set(prepared.authors["author_id"].tolist()))[:3]
    body = {"user_id": user, "candidates": authors}
    with opened(store=away.url) as (client, runtime):
        assert client.get("/readyz").status_code == 200
        answer = client.post("/rank", json=body)
        assert (answer.status_code, answer.json()["degraded"]) == (200, ["no_history", "unknown_authors"])
        assert client.post("/events", json={"events": [EVENT]}).json()["type"] == "urn:farm:problem:store-unavailable"
        away.restart()
        asyncio.run(materialize(prepared, away.url))
        wait_until(lambda: not runtime.sources.is_absent, "the store is found")
        answer = client.post("/rank", json=body)
        assert (answer.status_code, answer.json()["degraded"]) == (200, [])
        assert client.get("/readyz").status_code == 200


def test_a_store_that_comes_and_does_not_fit_makes_it_not_ready(opened: Client, away: Server) -> None:
    schema = default_schema()
    lacking = schema.model_copy(
        update={"name": "lacking", "author": tuple(field for field in schema.author if field.name != "tag")}
    )
    with opened(store=away.url) as (client, runtime):
        away.restart()
        _make(away.url, lacking)
        wait_until(lambda: bool(runtime.sources.unfit), "it is looked at")
        answer = client.get("/readyz")
        assert answer.status_code == 503
        assert "which the model reads" in answer.json()["detail"]
        assert client.post("/rank", json={"user_id": 1, "candidates": [1]}).status_code == 200


def test_until_then_ids_are_as_the_named_schema_says(opened: Client, away: Server, tmp_path: Path) -> None:
    default_schema().model_copy(update={"ids": "string"}).save(tmp_path / "schema.json")
    body = {"user_id": "u-1", "candidates": ["a-1"]}
    with opened(store=away.url, record_schema=tmp_path / "schema.json") as (client, _):
        assert client.post("/rank", json=body).json()["ranking"][0]["author_id"] == "a-1"
    with opened(store=away.url) as (client, _):
        assert client.post("/rank", json=body).status_code == 422


def test_it_stops_while_the_store_is_away(away: Server) -> None:
    keeper = SourceKeeper(away.url, SETTINGS, default_schema(), retry_s=0.01)
    assert isinstance(keeper.current.store, AbsentStore)
    looked: list[object] = []
    keeper.follow(looked.append)
    asyncio.run(keeper.close())
    away.restart()
    _make(away.url, default_schema())
    time.sleep(0.2)
    assert not looked


def _make(url: str, schema: RecordSchema) -> None:
    async def make() -> None:
        async with open_store(url, schema, create=True):
            pass

    asyncio.run(make())
