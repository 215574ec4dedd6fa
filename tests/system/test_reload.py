"""Models that change while real processes serve them: all switch or none does, and no request notices."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from loadtest.bench.faults_artifacts import all_nan, corrupted, incompatible
from loadtest.process import ServiceProcess, running_service
from model.artifact.manifest import MANIFEST, Artifact, Manifest, version_of
from model.registry.contents import place
from model.registry.pointer import Split
from model.registry.signing import make_key, sign
from model.registry.store import ArtifactStore

WAIT_S = 60.0


@dataclass(frozen=True)
class Models:
    """A store with three versions of one model, the first of which is active."""

    folder: Path
    store: ArtifactStore
    versions: tuple[str, ...]


@dataclass
class Answers:
    """When each was asked for, its status, its model."""

    got: list[tuple[float, int, str]] = field(default_factory=list)
    lost: list[Exception] = field(default_factory=list)

    def since(self, start: float) -> set[tuple[int, str]]:
        return {(status, model) for asked, status, model in self.got if asked >= start}


@pytest.fixture
def models(artifact: Path, tmp_path: Path) -> Models:
    store = ArtifactStore.open(tmp_path / "models")
    versions = tuple(store.push(dated(artifact, tmp_path / str(day), day)) for day in (1, 2, 3))
    store.activate(versions[0])
    return Models(tmp_path / "models", store, versions)


def dated(artifact: Path, target: Path, day: int) -> Path:
    """The same model, made on another day: another version."""
    shutil.copytree(artifact, target)
    manifest = json.loads((target / MANIFEST).read_text())
    (target / MANIFEST).write_text(json.dumps({**manifest, "created": f"2026-01-{day:02}T00:00:00Z"}))
    return target


@contextmanager
def serving(models: Models, store_url: str, *options: str, **environment: str) -> Iterator[ServiceProcess]:
    first = models.folder / place(models.versions[0])
    settings = {"FARM_MODELS": str(models.folder), "FARM_GRACE_S": "0", "FARM_MODELS_POLL_S": "0.1", **environment}
    with running_service(first, store_url, *options, **settings) as service:
        yield service


def activate(service: ServiceProcess, version: str) -> httpx.Response:
    body = {"version": version, "by": "test"}
    return httpx.post(f"{service.admin_url}/models/activate", json=body, timeout=WAIT_S, trust_env=False)


def state(service: ServiceProcess) -> dict[str, object]:
    found: dict[str, object] = httpx.get(f"{service.admin_url}/models", timeout=WAIT_S, trust_env=False).json()
    return found


def served(service: ServiceProcess) -> list[str]:
    """The model of each worker that is ready."""
    return [worker["model_version"] for worker in service.workers() if worker["role"] == "worker"]


def wait_until(condition: Callable[[], bool], within_s: float = WAIT_S) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def asking(service: ServiceProcess, clients: int = 4) -> Iterator[Answers]:
    """Clients that keep their connections, and ask without a pause."""
    answers, ended = Answers(), threading.Event()

    def ask(number: int) -> None:
        with httpx.Client(base_url=service.url, timeout=WAIT_S, trust_env=False) as client:
            while not ended.is_set():
                asked = time.monotonic()
                try:
                    got = client.post("/rank", json={"user_id": number, "candidates": [1, 2, 3]})
                    answers.got.append((asked, got.status_code, got.json().get("model_version", "")))
                except httpx.HTTPError as error:
                    answers.lost.append(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        ended.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("engine", ["inline", "process"])
def test_after_the_acknowledgement_every_answer_is_of_the_new_model(
    models: Models, store_url: str, engine: str
) -> None:
    with serving(models, store_url, "--workers", "2", FARM_ENGINE=engine) as service, asking(service) as answers:
        for version in (*models.versions[1:], *models.versions[:2]):
            assert activate(service, version).status_code == 200
            acknowledged = time.monotonic()
            assert served(service) == [version] * 2
            wait_until(lambda start=acknowledged: len([one for one in answers.got if one[0] >= start]) >= 8)
            assert answers.since(acknowledged) == {(200, version)}
        rolled_back = httpx.post(f"{service.admin_url}/models/rollback", timeout=WAIT_S, trust_env=False)
        assert rolled_back.json()["serving"]["model"] == models.versions[0]
    assert answers.lost == []
    assert {status for _, status, _ in answers.got} == {200}


def test_what_is_activated_elsewhere_is_followed(models: Models, store_url: str) -> None:
    with serving(models, store_url) as service:
        models.store.activate(models.versions[1])
        wait_until(lambda: served(service) == [models.versions[1]])
        assert httpx.get(f"{service.url}/version", trust_env=False).json()["model_version"] == models.versions[1]
        models.store.rollback()
        wait_until(lambda: served(service) == [models.versions[0]])
        metrics = httpx.get(f"{service.admin_url}/metrics", trust_env=False).text
        assert 'farm_model_changes_total{result="switched"} 2.0' in metrics
        assert "farm_model_pointer 3.0" in metrics


@pytest.mark.parametrize("spoil", [corrupted, all_nan, incompatible])
def test_a_spoilt_model_is_refused_and_the_old_goes_on(
    models: Models, store_url: str, tmp_path: Path, spoil: Callable[[Path, Path], Path]
) -> None:
    source = dated(models.folder / place(models.versions[0]), tmp_path / "spare", 9)
    spoilt = spoil(source, tmp_path / "spoilt")
    version = smuggled(models, spoilt)
    with serving(models, store_url, "--workers", "2") as service, asking(service) as answers:
        refused = activate(service, version)
        assert (refused.status_code, refused.json()["type"]) == (409, "urn:farm:problem:change-refused")
        assert served(service) == [models.versions[0]] * 2
        assert state(service)["serving"]["number"] == 1
    assert {one[1:] for one in answers.got} == {(200, models.versions[0])}
    assert answers.lost == []


def smuggled(models: Models, artifact: Path) -> str:
    """Laid into the store as it is, as after a disk that failed; its version."""
    content = (artifact / MANIFEST).read_bytes()
    version = version_of(Manifest.model_validate_json(content).created, content)
    shutil.copytree(artifact, models.folder / place(version))
    return version


def test_what_cannot_be_served_is_told_and_does_not_end_the_service(
    models: Models, store_url: str, tmp_path: Path
) -> None:
    """It is right by its checksums, so another instance, of another store, may have activated it."""
    source = dated(models.folder / place(models.versions[0]), tmp_path / "spare", 9)
    version = models.store.push(incompatible(source, tmp_path / "spoilt"))
    with serving(models, store_url) as service:
        models.store.activate(version)
        wait_until(lambda: state(service)["refused"] is not None)
        refused = state(service)["refused"]
        assert (refused["number"], refused["model"]) == (2, version)
        assert "lacks video.event_mood" in refused["reason"]
        assert served(service) == [models.versions[0]]
        models.store.rollback()
        wait_until(lambda: state(service)["refused"] is None)
        assert state(service)["serving"]["number"] == 3


def test_a_worker_that_dies_comes_back_with_what_was_acknowledged(models: Models, store_url: str) -> None:
    with serving(models, store_url, "--workers", "2") as service:
        assert activate(service, models.versions[1]).status_code == 200
        killed = service.workers()[0]["pid"]
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: killed not in [worker["pid"] for worker in service.workers()])
        wait_until(lambda: served(service) == [models.versions[1]] * 2)


def test_a_worker_that_dies_while_it_prepares_undoes_the_change(models: Models, store_url: str) -> None:
    with serving(models, store_url, "--workers", "2") as service:
        victim = service.workers()[0]["pid"]
        os.kill(victim, signal.SIGSTOP)  # so that it does not get ready
        answers: list[httpx.Response] = []
        asked = threading.Thread(target=lambda: answers.append(activate(service, models.versions[1])))
        asked.start()
        asked.join(0.5)
        assert answers == []
        os.kill(victim, signal.SIGKILL)
        asked.join(WAIT_S)
        assert answers[0].status_code == 409
        assert f"worker {victim} ended with -9" in answers[0].json()["detail"]
        wait_until(lambda: served(service) == [models.versions[0]] * 2)
        assert models.store.read_pointer().number == 1
        assert activate(service, models.versions[1]).status_code == 200


def test_users_are_split(models: Models, store_url: str) -> None:
    first, second, _ = models.versions
    with serving(models, store_url, "--workers", "2") as service:
        models.store.activate(first, split=Split(version=second, share=0.5, salt="a"))
        wait_until(lambda: state(service)["serving"]["split"] == second)
        with httpx.Client(base_url=service.url, timeout=WAIT_S, trust_env=False) as client:
            asked = {user: model_of(client, user) for user in range(40)}
            assert {user: model_of(client, user) for user in range(40)} == asked
        assert set(asked.values()) == {first, second}


def test_an_instance_refuses_what_no_trusted_key_signed(models: Models, store_url: str, tmp_path: Path) -> None:
    trusted, private = tmp_path / "trusted-keys.txt", tmp_path / "farm.pem"
    trusted.write_text(f"# of the build machine\n{make_key(private)}\n")
    for day in (1, 2):
        sign(tmp_path / str(day), private)
        models.store.push(tmp_path / str(day))
    with serving(models, store_url, FARM_TRUSTED_KEYS=str(trusted)) as service:
        assert activate(service, models.versions[1]).status_code == 200
        refused = activate(service, models.versions[2])
        assert refused.status_code == 409
        assert "no trusted key" in refused.json()["detail"]
        assert served(service) == [models.versions[1]]


def model_of(client: httpx.Client, user: int) -> str:
    return str(client.post("/rank", json={"user_id": user, "candidates": [1]}).json()["model_version"])


def test_a_service_of_one_artifact_has_nothing_to_change(artifact: Path, store_url: str) -> None:
    with running_service(artifact, store_url, FARM_GRACE_S="0") as service:
        refused = activate(service, Artifact.open(artifact).version)
        assert refused.status_code == 409
        assert "start it with --models" in refused.json()["detail"]
