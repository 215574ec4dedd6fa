"""The application in this process, over stores and moments that a running service is not easily brought to."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import httpx
import lmdb
import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from schemathesis import checks
from schemathesis.specs.openapi import checks as openapi_checks
from service_facts import Facts

from feature_store.store import open_store
from model.artifact.engine import Engine
from service.app import create_app
from service.runtime import Runtime, StartError, load_runtime
from service.settings import Settings

CONFORMANCE = [
    checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_schema_conformance,
]
Client = Callable[..., AbstractContextManager[tuple[TestClient, Runtime]]]


@pytest.fixture
def opened(artifact: Path, store_url: str) -> Client:
    """The application over these settings, and its runtime."""

    @contextmanager
    def open_app(**options: object) -> Iterator[tuple[TestClient, Runtime]]:
        runtime = load_runtime(Settings(**{"artifact": artifact, "store": store_url, **options}))
        with TestClient(create_app(runtime), raise_server_exceptions=False) as client:
            yield client, runtime

    return open_app


def copied_store(store_url: str, folder: Path) -> Path:
    shutil.copytree(store_url.removeprefix("lmdb://"), folder)
    return folder


def test_a_corrupt_history_is_an_empty_one(opened: Client, store_url: str, facts: Facts, tmp_path: Path) -> None:
    folder = copied_store(store_url, tmp_path / "store")
    with lmdb.open(str(folder), max_dbs=8) as env, env.begin(write=True) as txn:
        users = env.open_db(b"users", txn)
        for key, value in list(txn.cursor(users)):
            txn.put(key, value[:-1] + bytes([value[-1] ^ 1]), db=users)
    with opened(store=f"lmdb://{folder}") as (client, _):
        body = {"user_id": facts.users[0], "candidates": facts.authors[:3], "now_ms": facts.now_ms}
        answer = client.post("/rank", json=body).json()
        assert answer["degraded"] == ["corrupt_history"]
        assert len(answer["ranking"]) == 3
        assert 'farm_rank_degraded_total{reason="corrupt_history"} 1.0' in client.get("/metrics").text


def test_a_store_that_fails_degrades_the_answer(opened: Client, store_url: str, facts: Facts) -> None:
    with opened() as (client, runtime):
        client.portal.call(runtime.store.close)
        body = {"user_id": facts.users[0], "candidates": facts.authors[:3], "now_ms": facts.now_ms}
        assert client.post("/rank", json=body).json()["degraded"] == ["no_history", "unknown_authors"]


def test_string_ids_come_back_as_they_were_sent(opened: Client, store_url: str, tmp_path: Path) -> None:
    url = f"lmdb://{tmp_path / 'strings'}"
    asyncio.run(make_string_store(store_url, url))
    with opened(store=url) as (client, _):
        body = {"user_id": "Ünï/1", "candidates": ["a,b", {"author_id": "c", "live_id": "room %b"}, 5]}
        rows = client.post("/rank", json=body).json()["ranking"]
        assert {(row["author_id"], row["live_id"]) for row in rows} == {("a,b", None), ("c", "room %b"), (5, None)}
        refused = client.post("/rank", json={"user_id": "u", "candidates": [1.5]}).json()
        assert refused["errors"][0]["message"] == "an id must be a string or an integer, not 1.5"


async def make_string_store(store_url: str, url: str) -> None:
    """An empty store with the schema of the session's, but for string ids."""
    async with open_store(store_url) as source:
        schema = source.schema.model_copy(update={"ids": "string"})
    async with open_store(url, schema, create=True):
        pass


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
        runtime.pool.shutdown()
        failed = client.post("/rank", json={"user_id": 1, "candidates": [1]}, headers={"X-Request-Id": "q7"})
        assert (failed.status_code, failed.headers["content-type"]) == (500, "application/problem+json")
        assert failed.json()["request_id"] == "q7"
        assert "shutdown" not in failed.text
        assert 'farm_http_requests_total{route="/rank",status="500"} 1.0' in client.get("/metrics").text


def test_a_request_that_waits_for_the_engine_holds_up_nothing(artifact: Path, store_url: str) -> None:
    async def check() -> None:
        runtime = load_runtime(Settings(artifact=artifact, store=store_url, executors=1))
        free = threading.Event()
        runtime.pool.submit(free.wait)
        transport = httpx.ASGITransport(create_app(runtime))
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            body = {"user_id": 1, "candidates": list(range(2000))}
            waiting = asyncio.create_task(client.post("/rank", json=body))
            await asyncio.sleep(0.1)
            assert (await client.get("/livez")).status_code == 200
            assert not waiting.done()
            free.set()
            answer = (await waiting).json()
            assert len(answer["ranking"]) == 2000
            assert 50 < answer["timing_ms"]["queue"] < answer["timing_ms"]["total"]
        await runtime.close()

    asyncio.run(check())


def test_the_document_describes_every_answer(opened: Client) -> None:
    with opened() as (client, _):
        document = client.get("/openapi.json").json()
        rank = document["paths"]["/rank"]["post"]
        assert set(rank["responses"]) == {"200", "400", "413", "415", "422", "500"}
        for name, example in rank["requestBody"]["content"]["application/json"]["examples"].items():
            assert client.post("/rank", json=example["value"]).status_code == 200, name
        assert {"RankRequest", "Candidate", "RankAnswer", "Problem"} <= set(document["components"]["schemas"])


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_schemathesis(opened: Client, mode: schemathesis.GenerationMode) -> None:
    """Whatever the document allows or forbids: no 5xx, and only documented answers."""
    with opened() as (client, _):
        schema = schemathesis.openapi.from_asgi("/openapi.json", client.app)
        operation = schema["/rank"]["POST"]

        @settings(
            max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def conforms(case: schemathesis.Case) -> None:
            case.call_and_validate(checks=CONFORMANCE)

        conforms()
