"""The application of the admin port, over workers in any state."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from service.admin import create_admin
from service.lifecycle.places import Place
from service.scrape import Scrape


@dataclass
class Workers:
    """As the supervisor has them."""

    places: list[Place] = field(default_factory=lambda: [Place("worker", 0), Place("worker", 1)])
    stopping: bool = False
    stuck: list[Place] = field(default_factory=list)

    def wedged(self) -> list[Place]:
        return self.stuck


@pytest.fixture
def workers() -> Workers:
    return Workers()


@pytest.fixture
def client(workers: Workers, tmp_path: Path) -> TestClient:
    return TestClient(create_admin(workers, Scrape(tmp_path)), raise_server_exceptions=False)


def test_ready_when_every_worker_is(workers: Workers, client: TestClient) -> None:
    told = []
    for place in (None, *workers.places):
        if place is not None:
            place.ready_at = 1.0
        answer = client.get("/readyz")
        told.append((answer.status_code, answer.json().get("detail")))
    assert told == [(503, "0 of 2 processes are ready"), (503, "1 of 2 processes are ready"), (200, None)]
    workers.stopping = True
    refused = client.get("/readyz")
    assert (refused.status_code, refused.headers["content-type"]) == (503, "application/problem+json")
    assert refused.json()["detail"] == "the service is being stopped"
    assert refused.json()["type"] == "urn:farm:problem:not-ready"
    assert len(refused.json()["request_id"]) == 32
    assert client.get("/livez").json() == {"status": "alive"}


def test_workers_and_the_models_they_answer_with(workers: Workers, client: TestClient) -> None:
    workers.places[0] = Place("worker", 0, ready_at=1.0, model_version="v1", restarts=2)
    assert client.get("/workers").json() == [
        {"role": "worker", "pid": None, "state": "ready", "restarts": 2, "model_version": "v1"},
        {"role": "worker", "pid": None, "state": "ended", "restarts": 0, "model_version": None},
    ]
    assert client.get("/version").json()["model_versions"] == ["v1"]
    workers.places[1] = Place("worker", 1, ready_at=2.0, model_version="v0")
    assert client.get("/version").json()["model_versions"] == ["v0", "v1"]


def test_metrics_of_the_parent_itself(workers: Workers, client: TestClient) -> None:
    workers.places[0] = Place("worker", 0, ready_at=1.0, restarts=3)
    lines = client.get("/metrics").text.splitlines()
    assert 'farm_workers{role="worker",state="ready"} 1.0' in lines
    assert 'farm_workers{role="worker",state="ended"} 1.0' in lines
    assert 'farm_worker_restarts_total{role="worker"} 3.0' in lines


def test_an_unknown_path_is_a_problem(client: TestClient) -> None:
    answer = client.get("/rank")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


@pytest.mark.parametrize(
    ("body", "status", "kind", "fields"),
    [
        (b'{"versio":"x"}', 422, "invalid-request", ["version", "versio"]),
        (b'{"version":5}', 422, "invalid-request", ["version"]),
        (b"{", 400, "malformed-body", []),
    ],
)
def test_a_wrong_body_is_a_problem(client: TestClient, body: bytes, status: int, kind: str, fields: list[str]) -> None:
    answer = client.post("/models/activate", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    problem = answer.json()
    assert problem["type"] == f"urn:farm:problem:{kind}"
    assert [error["field"] for error in problem["errors"]] == fields
    assert len(problem["request_id"]) == 32
