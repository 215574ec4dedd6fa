"""Small artifacts that a registry takes for whole, and stores of each kind."""

from __future__ import annotations

import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import fsspec
import numpy as np

from model.artifact.calibration import Calibration
from model.artifact.manifest import (
    CALIBRATION,
    CANDIDATE_TOWER,
    GOLDEN,
    MANIFEST,
    TABLES,
    USER_TOWER,
    Artifact,
    Manifest,
    describe_file,
)
from model.datasets.logs import default_view
from model.registry.remote import FsspecFiles
from model.registry.store import ArtifactStore

CREATED = datetime(2026, 1, 31, 12, tzinfo=UTC)
VIEW = default_view(utc_offset_s=0)
KINDS = ("directory", "file", "memory")  # the latter two by fsspec
OpenStore = Callable[..., ArtifactStore]


def make_artifact(parent: Path, seed: int = 0, slope: float = 1.0, created: datetime = CREATED) -> Artifact:
    """A folder as `farm export` writes it, with random bytes for graphs and tables.

    slope: of the first task's calibration, which gives it another hash.
    """
    folder = parent / f"artifact-{seed}-{slope}-{created:%Y%m%d}"
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    for name in (USER_TOWER, CANDIDATE_TOWER, TABLES, GOLDEN):
        (folder / name).write_bytes(random.bytes(3000))
    knots = np.array([0.1, 0.5])
    Calibration(VIEW.tasks, {VIEW.tasks[0]: (knots, knots * slope)}).save(folder / CALIBRATION)
    write_manifest(folder, created)
    return Artifact.open(folder)


def write_manifest(folder: Path, created: datetime = CREATED, **files: str) -> None:
    """Of whatever lies in the folder;  files: other names for some, `manifest.files` being a promise."""
    found = {file.name: describe_file(file) for file in sorted(folder.iterdir()) if file.name != MANIFEST}
    manifest = Manifest(
        created=created,
        arch="farm",
        source="test",
        settings={},
        view=VIEW,
        state=(),
        parameters={"dense": 1, "tables": 1},
        metrics={},
        data_span={},
        golden_tolerance=1e-5,
        files={files.get(name, name): spec for name, spec in found.items()},
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1))


def opener(kind: str, root: Path) -> OpenStore:
    """open_store(trusted_keys=()) -> one and the same store of this kind, opened anew."""
    memory = f"memory://{uuid.uuid4().hex}/models"

    def open_store(trusted_keys: Sequence[str] = ()) -> ArtifactStore:
        if kind == "directory":
            return ArtifactStore.open(root, trusted_keys)
        if kind == "file":
            return ArtifactStore(FsspecFiles(fsspec.filesystem("file"), str(root), f"fsspec {root}"), trusted_keys)
        return ArtifactStore.open(memory, trusted_keys)

    return open_store


def flip(file: Path, byte: int = 100) -> None:
    """Change one byte, which keeps the size."""
    content = bytearray(file.read_bytes())
    content[byte] ^= 1
    file.write_bytes(content)


def started(script: str, *words: object) -> subprocess.Popen[str]:
    """A script in a process of its own, with this folder on its path."""
    command = [sys.executable, "-c", script, *map(str, words)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=Path(__file__).parent)


def killed(script: str, *words: object) -> bool:
    """Whether a script ended by killing itself."""
    process = started(script, *words)
    process.communicate(timeout=60)
    return process.returncode == -signal.SIGKILL
