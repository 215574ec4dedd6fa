"""Overlays as kubectl renders them, checked strictly and by checkov; their Deployments really run under podman."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from debian_programs import program
from images import built, until
from kubernetes_manifests import OVERLAYS, Resource, check_schema, not_restricted, pods, render
from kubernetes_pods import Pod, played, secret

from loadtest.redis_servers import free_port, valkey
from model.datasets.prepared import Prepared
from model.materialize import materialize
from model.registry.store import ArtifactStore
from service.doors.keys import new_key

pytestmark = pytest.mark.debian

PASSWORD = "of-the-test"
READY_WITHIN_S = 60.0
EXPLAINED = ("CKV_K8S_15", "CKV_K8S_35", "CKV_K8S_43")  # by annotations of the manifests


@pytest.fixture(scope="module")
def rendered() -> dict[str, list[Resource]]:
    """Every overlay."""
    program("kubectl", "Debian's package kubernetes-client")
    return {overlay: render(overlay) for overlay in OVERLAYS}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_is_valid_and_restricted(rendered: dict[str, list[Resource]], overlay: str) -> None:
    for resource in rendered[overlay]:
        check_schema(resource)
        assert resource["kind"] == "Namespace" or resource["metadata"]["namespace"] == "farm"
    workloads = dict(pods(rendered[overlay]))
    assert {"Deployment/farm", "Deployment/farm-events"} <= workloads.keys()
    assert {name: not_restricted(pod) for name, pod in workloads.items() if not_restricted(pod)} == {}


def _checkov(file: Path) -> dict[str, Any]:
    command = [program("checkov", "the wheel checkov, in an environment of its own")]
    command += ["--framework", "kubernetes", "--output", "json", "--skip-download", "--file", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_checkov_finds_nothing_that_is_not_explained(
    rendered: dict[str, list[Resource]], overlay: str, tmp_path: Path
) -> None:
    file = tmp_path / f"{overlay}.yaml"
    file.write_text(yaml.safe_dump_all(rendered[overlay]))
    found = _checkov(file)
    summary = found["summary"]
    print(
        f"checkov {summary['checkov_version']}, {overlay}: {summary['passed']} passed, {summary['skipped']} explained"
    )
    assert summary["parsing_errors"] == 0
    assert [f"{one['check_id']} {one['resource']}" for one in found["results"]["failed_checks"]] == []
    assert {one["check_id"] for one in found["results"]["skipped_checks"]} <= set(EXPLAINED)


def test_checkov_finds_what_is_loosened(rendered: dict[str, list[Resource]], tmp_path: Path) -> None:
    loosened = render("local")
    for _, pod in pods(loosened):
        for container in pod["containers"]:
            container["securityContext"]["readOnlyRootFilesystem"] = False
    (tmp_path / "loosened.yaml").write_text(yaml.safe_dump_all(loosened))
    assert {one["check_id"] for one in _checkov(tmp_path / "loosened.yaml")["results"]["failed_checks"]} == {
        "CKV_K8S_22"
    }


@dataclass
class Town:
    """What the pods of the overlay `local` find: Valkey, an artifact store, keys; and an image."""

    folder: Path
    store_url: str
    key: str
    image: str
    resources: list[Resource]
    version: str
    stack: ExitStack = field(default_factory=ExitStack)

    def play(self, name: str, *volumes: str, **settings: str) -> Pod:
        """A Deployment's pod, until the town is left."""
        ports = {"http": free_port(), "admin": free_port(), "metrics": free_port()}
        given = {"FARM_PORT": ports["http"], "FARM_ADMIN_PORT": ports["admin"], "FARM_METRICS_PORT": ports["metrics"]}
        given = {name: str(port) for name, port in given.items()} | {"FARM_STORE": self.store_url} | settings
        folders = {volume: _open_folder(self.folder / volume) for volume in volumes}
        file = self.folder / f"{name}.yaml"
        return self.stack.enter_context(played(self.resources, name, self.image, folders, given, ports, file))


def _open_folder(folder: Path) -> Path:
    """As a volume with an fsGroup is: the container's user may write there."""
    folder.mkdir(exist_ok=True)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o666)
    return folder


SERVICE = ("models", "models-cache", "trusted-keys", "api-keys", "tmp")


@pytest.fixture
def town(rendered: dict[str, list[Resource]], artifact: Path, prepared: Prepared, tmp_path: Path) -> Iterator[Town]:
    image = built("serve")
    with valkey(password=PASSWORD) as server, secret("farm-redis", "password", PASSWORD), ExitStack() as stack:
        asyncio.run(materialize(prepared, f"redis://:{PASSWORD}@{server.address}"))
        models = ArtifactStore.open(tmp_path / "models")
        version = models.push(artifact)
        models.activate(version, by="test")
        key, stored = new_key(["rank", "events", "admin"])
        (tmp_path / "api-keys").mkdir()
        (tmp_path / "api-keys" / "keys.jsonl").write_text(stored.line() + "\n")
        yield Town(tmp_path, server.url, key, image, rendered["local"], version, stack)


def test_the_deployments_rank_and_merge_events(town: Town, prepared: Prepared) -> None:
    service = town.play("farm", *SERVICE)
    until(lambda: service.probe("startup"), READY_WITHIN_S, service.logs)
    assert service.probe("readiness")
    assert service.probe("liveness")
    _is_locked(service, "farm")
    assert (town.folder / "models-cache" / town.version / "manifest.json").is_file()  # by the init container

    authors = [int(author) for author in sorted(set(prepared.authors["author_id"].tolist()))[:50]]
    question = {"user_id": int(prepared.user_ids()[0]), "candidates": authors}
    client = httpx.Client(trust_env=False, headers={"authorization": f"Bearer {town.key}"}, timeout=30.0)
    answer = client.post(f"{service.url('http')}/rank", json=question)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["ranking"]) == len(authors)
    assert answer.json()["degraded"] == []
    assert httpx.post(f"{service.url('http')}/rank", json=question, trust_env=False).status_code == 401
    assert f'version="{town.version}"' in client.get(f"{service.url('admin')}/metrics").text

    worker = town.play("farm-events", "tmp")
    until(lambda: worker.probe("startup"), READY_WITHIN_S, worker.logs)
    _is_locked(worker, "event-worker")
    now_ms = int(1000 * time.time())
    view = {"type": "video_view", "user_id": question["user_id"], "view_id": 1, "author_id": authors[0]}
    times = {"event_time": now_ms - 2000, "known_at": now_ms - 1000}
    assert client.post(f"{service.url('http')}/events", json={"events": [view | times]}).status_code == 202
    metrics = f"{worker.url('metrics')}/metrics"
    until(lambda: "farm_events_applied_total 1.0" in client.get(metrics).text, 20.0, worker.logs)

    assert worker.stop(30) == 0
    assert service.stop(45) == 0


def _is_locked(pod: Pod, container: str) -> None:
    """The securityContext of the manifest is that of the container."""
    state = pod.state(container)
    assert state["Config"]["User"].split(":")[0] == "10001"
    assert state["HostConfig"]["ReadonlyRootfs"] is True
    assert state["HostConfig"]["SecurityOpt"] == ["no-new-privileges"]
    assert state["EffectiveCaps"] in (None, [])
    assert state["HostConfig"]["Memory"] > 0


def test_a_spoilt_model_is_not_served(town: Town) -> None:
    file = town.folder / "models" / "models" / town.version / "user_tower.onnx"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    service = town.play("farm", *SERVICE)
    until(lambda: "user_tower.onnx" in service.logs(), 60.0, service.logs)
    assert not (town.folder / "models-cache" / town.version).exists()
    assert service.state("farm")["State"]["Status"] == "created"
    assert not service.probe("readiness")
