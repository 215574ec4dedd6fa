"""Of `farm bench faults` and `soak`: a store of models, and a service that serves what its pointer says."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest.bench.faults_artifacts import another_model
from loadtest.bench.service_lab import BenchError, Lab, Service
from loadtest.process import ServiceProcess
from model.registry.store import ArtifactStore

_ACTIVATE_S = 120.0


@dataclass(frozen=True)
class Models:
    """An artifact store in a folder, with two models of one kind, the first of which is active."""

    folder: Path
    store: ArtifactStore
    versions: tuple[str, str]


@dataclass(frozen=True)
class Activation:
    """What the admin port said to an activation.  Times are of time.perf_counter."""

    version: str
    asked: float
    told: float
    status: int
    answer: dict[str, Any]


def two_models(lab: Lab, folder: Path) -> Models:
    """The lab's and one with other weights."""
    root = folder / "models"
    root.mkdir(parents=True)
    store = ArtifactStore.open(root)
    versions = store.push(lab.artifact), store.push(another_model(lab.folder, seed=17))
    store.activate(versions[0])
    return Models(root, store, versions)


@contextmanager
def serving_models(
    lab: Lab, models: Models, *options: str, cpus: set[int] | None = None, **environment: Any
) -> Iterator[Service]:
    """A service over the LMDB store whose models are those of the folder."""
    set_ = {"FARM_MODELS": str(models.folder), **environment}
    with lab.another(lab.store("lmdb"), *options, cpus=cpus, **set_) as service:
        yield service


def activate(service: ServiceProcess, version: str) -> Activation:
    """Ask for a version, and wait until it is acknowledged or refused."""
    asked = time.perf_counter()
    body = json.dumps({"version": version}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{service.admin_url}/models/activate", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=_ACTIVATE_S) as response:
            status, answer = response.status, json.load(response)
    except urllib.error.HTTPError as error:
        status, answer = error.code, json.load(error)
    return Activation(version, asked, time.perf_counter(), status, answer)


def must_activate(service: ServiceProcess, version: str) -> Activation:
    """BenchError when it is refused."""
    found = activate(service, version)
    if found.status != 200:
        raise BenchError(f"{version} was not activated: {found.status} {found.answer}")
    return found


def active_version(service: ServiceProcess) -> str:
    """What the public port says that it serves."""
    with urllib.request.urlopen(f"{service.url}/version", timeout=10) as response:
        return str(json.load(response)["model_version"])
