"""Of `farm bench faults`: models that must be refused, and one that must be left again."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loadtest.bench.faults_answers import is_good
from loadtest.bench.faults_artifacts import all_nan, another_model, corrupted, incompatible, poisoned
from loadtest.bench.faults_lab import Ground, unanswered
from loadtest.bench.faults_models import (
    Models,
    activate,
    active_version,
    must_activate,
    serving_models,
    two_models,
)
from loadtest.bench.service_stores import AUTHORS
from loadtest.bench.store_data import author_ids
from loadtest.load.trace import Trace
from model.artifact.manifest import MANIFEST, Manifest, version_of
from model.figures import claim
from model.registry.contents import place

LOAD = 0.6  # of saturation
SPOILT: dict[str, Callable[[Path, Path], Path]] = {
    "corrupt": corrupted,
    "nan": all_nan,
    "incompatible": incompatible,
}

_LONGEST_S = 20.0  # of an activation
_AROUND_S = 1.0  # of load
_BACK_S = 30.0  # for a model to be left again
_LOOK_S = 0.1


def refused(ground: Ground) -> dict[str, Any]:
    """Artifacts that are spoilt, put into the store past `push`, and asked for under load."""
    bodies, found = ground.bodies(), {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = two_models(ground.lab, folder)
        source = another_model(ground.lab.folder, seed=18)
        with serving_models(ground.lab, models) as service:
            rate = LOAD * ground.peak(service, "lmdb")
            seconds = len(SPOILT) * (_LONGEST_S + _AROUND_S)
            with ground.loading(service.process.url, bodies, seconds, rate) as load:
                for kind, spoil in SPOILT.items():
                    change = activate(service.process, smuggled(models, spoil(source, folder / kind)))
                    time.sleep(_AROUND_S)
                    kept = active_version(service.process) == models.versions[0]
                    detail = str(change.answer.get("detail", ""))
                    for path in (folder, ground.lab.folder):  # of this machine
                        detail = detail.replace(f"{path}/", "")
                    found[kind] = {"status": change.status, "detail": detail, "kept": kept}
                load.stop()
                result = load.result()
    others = _others(result.traced(), models)
    return {"models": found, "statuses": result.statuses, "failed": unanswered(result), "other_models": len(others)}


def refused_claims(found: dict[str, Any]) -> list[dict[str, Any]]:
    kept = sum(one["status"] >= 400 and one["kept"] for one in found["models"].values())
    return [
        claim(f"spoilt models that were refused, of {len(SPOILT)}", kept, ">=", len(SPOILT)),
        claim("requests that failed while models were refused", found["failed"], "<=", 0),
        claim("answers of a model that was refused", found["other_models"], "<=", 0),
    ]


def rollback(ground: Ground) -> dict[str, Any]:
    """A model that is right on its golden outputs, and gives NaN for one author whom many ask for."""
    bodies = ground.bodies()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = two_models(ground.lab, folder)
        guilty = int(author_ids(AUTHORS)[7])
        version = models.store.push(poisoned(ground.lab.artifact, folder / "poisoned", guilty, "nan"))
        with serving_models(ground.lab, models) as service:
            rate = LOAD * ground.peak(service, "lmdb")
            with ground.loading(service.process.url, bodies, _LONGEST_S + _BACK_S, rate) as load:
                change = must_activate(service.process, version)
                ends = time.perf_counter() + _BACK_S
                while active_version(service.process) != models.versions[0] and time.perf_counter() < ends:
                    time.sleep(_LOOK_S)
                back_s = time.perf_counter() - change.told
                time.sleep(_AROUND_S)
                load.stop()
                result = load.result()
    lines = bodies.path.read_bytes().splitlines()
    failed = result.traced().where(~result.traced().of(is_good))
    return {
        "back_s": back_s,
        "statuses": result.statuses,
        "failed": len(failed) + result.errors,
        "failed_without_guilt": sum(str(guilty).encode() not in lines[body] for body in failed.body.tolist()),
        "nan_answers": sum(
            "NaN" in answer.text or "null" in answer.text.split('"xtr"')[-1] for answer in result.answers
        ),
    }


def rollback_claims(found: dict[str, Any]) -> list[dict[str, Any]]:
    text = "a model that turns out to give NaN: "
    return [
        claim(text + "s until the one before it serves again", found["back_s"], "<", _BACK_S),
        claim(text + "requests that failed without its author", found["failed_without_guilt"], "<=", 0),
        claim(text + "answers with NaN", found["nan_answers"], "<=", 0),
    ]


def smuggled(models: Models, artifact: Path) -> str:
    """The version of an artifact that is laid into the store as it is, as after a disk that failed."""
    content = (artifact / MANIFEST).read_bytes()
    version = version_of(Manifest.model_validate_json(content).created, content)
    shutil.copytree(artifact, models.folder / place(version))
    return version


def _others(trace: Trace, models: Models) -> Trace:
    return trace.only(lambda kind: is_good(kind) and kind.version != models.versions[0])
