"""The application in this process, over stores and moments that a running service is not easily brought to."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import AsyncMock

import httpx
import lmdb
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from prometheus_client import generate_latest
from schemathesis.specs.openapi import checks as openapi_checks
from service_facts import Client, Facts, make_empty_store

from model.artifact.engine import Engine
from service import ranking
from service.app import create_app
from service.ask import Ask
from service.errors import ForbiddenStepError
from service.runtime import StartError, load_runtime
from service.settings import Settings

CONFORMANCE = [
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_schema_conformance,
]

REFUSALS = {"400", "401", "403", "408", "413", "414", "415", "422", "431", "500", "503"}


def test_a_corrupt_history_is_an_empty_one(opened: Client, store_url: str, facts: Facts, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    shutil.copytree(store_url.removeprefix("lmdb://"), folder)
    with lmdb.open(str(folder), max_dbs=8) as env, env.begin(write=True) as txn:
        users = env.open_db(b"users", txn)
        for key, value in list(txn.cursor(users)):
            txn.put(key, value[:-1] + bytes([value[-1] ^ 1]), db=users)
    with opened(store=f"lmdb://{folder}") as (client, _):
        body = {"user_id": facts.users[0], "candidates": facts.authors[:3], "now_ms": facts.now_ms}
        answer = client.post("/rank", json=body).json()
        assert answer["degraded"] == ["corrupt_history"]
        assert len(answer["ranking"]) == 3
        assert 'farm_rank_degraded_total{reason="corrupt_history"} 1.0' in generate_latest().decode()


def test_a_store_that_fails_degrades_the_answer(opened: Client, store_url: str, facts: Facts) -> None:
    with opened() as (client, runtime):
        client.portal.call(runtime.store.close)
        body = {"user_id": facts.users[0], "candidates": facts.authors[:3], "now_ms": facts.now_ms}
        assert client.post("/rank", json=body).json()["degraded"] == ["no_history", "unknown_authors"]


def test_string_ids_come_back_as_they_were_sent(opened: Client, store_url: str, tmp_path: Path) -> None:
    url = f"lmdb://{tmp_path / 'strings'}"
    asyncio.run(make_empty_store(store_url, url, ids="string"))
    with opened(store=url) as (client, _):
        body = {"user_id": "Ünï/1", "candidates": ["a,b", {"author_id": "c", "live_id": "room %b"}, 5]}
        rows = client.post("/rank", json=body).json()["ranking"]
        assert {(row["author_id"], row["live_id"]) for row in rows} == {("a,b", None), ("c", "room %b"), (5, None)}
        refused = client.post("/rank", json={"user_id": "u", "candidates": [1.5]}).json()
        assert refused["errors"][0]["message"] == "an id must be a string or an integer, not 1.5"


def test_formula_file(opened: Client, artifact: Path, facts: Facts, tmp_path: Path) -> None:
    tasks = Engine.load(artifact, check=False).tasks
    file = tmp_path / "formula.json"
    file.write_text(json.dumps({"version": "ctr-only", "tasks": {task: {"power": 0} for task in tasks[1:]}}))
    with opened(formula=file) as (client, _):
        rows = client.post("/rank", json={"user_id": facts.users[0], "candidates": facts.authors[:30]}).json()[
            "ranking"
        ]
        ctr = [row["xtr"][tasks[0]] for row in rows]
        assert ctr == sorted(ctr, reverse=True)
        assert client.get("/version").json()["formula_version"] == "ctr-only"
    file.write_text(json.dumps({"tasks": {"dance": {}}}))
    with pytest.raises(StartError, match=r"formula\.tasks\.dance: no task of the model"), opened(formula=file):
        pass


def test_a_lower_limit_of_candidates(opened: Client) -> None:
    with opened(max_candidates=3) as (client, _):
        assert client.post("/rank", json={"user_id": 1, "candidates": [1, 2, 3]}).status_code == 200
        refused = client.post("/rank", json={"user_id": 1, "candidates": [1, 2, 3, 4]})
        assert refused.status_code == 422
        assert refused.json()["errors"][0]["message"] == "must be at most 3 candidates here, not 4"


def test_not_ready_while_stopping_but_still_answering(opened: Client) -> None:
    with opened() as (client, runtime):
        runtime.ready = False
        refused = client.get("/readyz")
        assert (refused.status_code, refused.headers["content-type"]) == (503, "application/problem+json")
        assert refused.json()["type"] == "urn:farm:problem:not-ready"
        assert client.get("/livez").status_code == 200
        assert client.post("/rank", json={"user_id": 1, "candidates": [1]}).status_code == 200


def test_an_unforeseen_error_shows_nothing_of_itself(opened: Client) -> None:
    with opened() as (client, runtime):
        serving = runtime.serving.current()
        runtime.serving.switch(replace(serving, formula=None))
        failed = client.post("/rank", json={"user_id": 1, "candidates": [1]}, headers={"X-Request-Id": "q7"})
        assert (failed.status_code, failed.headers["content-type"]) == (500, "application/problem+json")
        assert failed.json()["request_id"] == failed.headers["X-Request-Id"] == "q7"
        assert "NoneType" not in failed.text
        assert 'farm_http_requests_total{route="/rank",status="500"} 1.0' in generate_latest().decode()


def test_a_service_without_an_engine_says_when_to_ask_again(opened: Client) -> None:
    with opened() as (client, runtime):
        client.portal.call(runtime.scorer.close)
        refused = client.post("/rank", json={"user_id": 1, "candidates": [1]})
        assert (refused.status_code, refused.json()["type"]) == (503, "urn:farm:problem:engine-unavailable")
        assert int(refused.headers["Retry-After"]) >= 1


def test_a_request_that_waits_for_the_engine_holds_up_nothing(artifact: Path, store_url: str) -> None:
    async def check() -> None:
        runtime = load_runtime(Settings(artifact=artifact, store=store_url, executors=1))
        run, free = runtime.scorer._engine.run, threading.Event()
        runtime.scorer._engine.run = lambda pieces: free.wait() and run(pieces)
        transport = httpx.ASGITransport(create_app(runtime))
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            body = {"user_id": 1, "candidates": list(range(2000))}
            running = asyncio.create_task(client.post("/rank", json={"user_id": 1, "candidates": [1]}))
            await asyncio.sleep(0.1)
            waiting = asyncio.create_task(client.post("/rank", json=body))
            await asyncio.sleep(0.1)
            assert (await client.get("/livez")).status_code == 200
            assert not waiting.done()
            free.set()
            answer = (await waiting).json()
            assert len(answer["ranking"]) == 2000
            assert 50 < answer["timing_ms"]["queue"] < answer["timing_ms"]["total"]
            assert (await running).status_code == 200
        await runtime.close()

    asyncio.run(check())


def test_the_document_describes_every_answer(opened: Client) -> None:
    with opened() as (client, _):
        document = client.get("/openapi.json").json()
        rank = document["paths"]["/rank"]["post"]
        assert set(rank["responses"]) == {"200", "429", "504", *REFUSALS}
        for name, example in rank["requestBody"]["content"]["application/json"]["examples"].items():
            assert client.post("/rank", json=example["value"]).status_code == 200, name
        assert {"RankRequest", "Candidate", "RankAnswer", "Problem"} <= set(document["components"]["schemas"])


def test_the_document_describes_events(opened: Client, store_url: str, tmp_path: Path) -> None:
    url = f"lmdb://{tmp_path / 'store'}"
    asyncio.run(make_empty_store(store_url, url))
    with opened(store=url) as (client, runtime):
        document = client.get("/openapi.json").json()
        events = document["paths"]["/events"]["post"]
        assert set(events["responses"]) == {"202", *REFUSALS}
        unavailable = events["responses"]["503"]
        assert set(unavailable["content"]["application/problem+json"]["examples"]) == {
            "events-busy",
            "not-durable",
            "store-unavailable",
            "too-many-connections",
        }
        assert "Retry-After" in unavailable["headers"]
        for name, example in events["requestBody"]["content"]["application/json"]["examples"].items():
            assert client.post("/events", json=example["value"]).status_code == 202, name
        live = document["components"]["schemas"]["LiveView"]["properties"]
        stored = {field.name for field in runtime.store.schema.live} - {"known_after"}
        assert set(live) == stored | {"type", "user_id", "known_at"}


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
@pytest.mark.parametrize("path", ["/rank", "/events"])
def test_schemathesis(
    opened: Client, store_url: str, tmp_path: Path, path: str, mode: schemathesis.GenerationMode
) -> None:
    """Whatever the document allows or forbids: no 5xx, and only documented answers."""
    url = f"lmdb://{tmp_path / 'store'}"
    asyncio.run(make_empty_store(store_url, url))
    with opened(store=url) as (client, _):
        schema = schemathesis.openapi.from_asgi("/openapi.json", client.app)
        operation = schema[path]["POST"]

        @settings(
            max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def conforms(case: schemathesis.Case) -> None:
            answer = case.call_and_validate(checks=CONFORMANCE)
            assert answer.status_code < 500 or answer.status_code == 504  # a deadline of 1 ms, say

        conforms()


def test_a_store_that_is_away_does_not_keep_the_service_from_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the rankings that can be made without it are forbidden."""
    tried: list[int] = []

    async def forbidden(runtime: object, ask: Ask, watch: object) -> None:
        tried.append(len(ask.body))
        raise ForbiddenStepError("no_history")

    monkeypatch.setattr(ranking, "_rank", forbidden)
    runtime = SimpleNamespace(scorer=AsyncMock(), settings=SimpleNamespace(max_candidates=100))
    asyncio.run(ranking.warm_up(cast(Any, runtime)))
    assert len(tried) == 3
