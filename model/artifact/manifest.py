"""The artifact: a folder that training hands to serving, described by its manifest and checked by checksum.

manifest.json  user_tower.onnx  candidate_tower.onnx  user_tower.data  candidate_tower.data  tables.data
golden.npz  calibration.json
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from feature_store.view import ModelView

MANIFEST = "manifest.json"
USER_TOWER, CANDIDATE_TOWER = "user_tower.onnx", "candidate_tower.onnx"
TABLES = "tables.data"
GOLDEN, CALIBRATION = "golden.npz", "calibration.json"


class ArtifactError(ValueError):
    """The folder is no artifact, or not the one that was exported."""


class TensorSpec(BaseModel):
    """A named tensor of the user state; its first axis is the user."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dtype: str
    shape: tuple[int, ...]  # without the user axis


class FileSpec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int
    sha256: str


class Manifest(BaseModel):
    """What the model is, what it reads, how it was made and what its files must hash to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = 1
    created: datetime  # UTC
    arch: str
    source: str  # of the logs it was trained on
    settings: dict[str, Any]  # of model and training
    view: ModelView
    state: tuple[TensorSpec, ...]  # the user state
    parameters: dict[str, int]  # dense, tables
    metrics: dict[str, Any]  # of the validation day at the chosen epoch
    data_span: dict[str, int]  # ms of the first and last training sample
    precision: str = "fp32"  # of the dense arithmetic: fp32, fp16, int8
    golden_tolerance: float  # greatest allowed difference from the golden probabilities
    files: dict[str, FileSpec]


@dataclass(frozen=True)
class Artifact:
    """An artifact folder, opened and checked."""

    path: Path
    manifest: Manifest
    version: str  # YYYYMMDDTHHMMSSZ-, then eight hex digits of the manifest's sha256

    @classmethod
    def open(cls, path: str | Path) -> Artifact:
        """Open a folder and verify every file; ArtifactError names the file that is missing or differs."""
        folder = Path(path)
        file = folder / MANIFEST
        if not file.is_file():
            raise ArtifactError(f"{folder}: no {MANIFEST}; make the artifact with `farm export`")
        content = file.read_bytes()
        try:
            manifest = Manifest.model_validate_json(content)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            what = f"{field}: {first['msg']}" if field else first["msg"]
            raise ArtifactError(f"{file}: {what}; export or copy the artifact again") from None
        for name, spec in manifest.files.items():
            _verify(folder / name, spec)
        return cls(folder, manifest, version_of(manifest.created, content))


def version_of(created: datetime, manifest: bytes) -> str:
    """The version of an artifact: when it was made and what it is."""
    return f"{created:%Y%m%dT%H%M%SZ}-{hashlib.sha256(manifest).hexdigest()[:8]}"


def describe_file(path: Path) -> FileSpec:
    with path.open("rb") as file:
        return FileSpec(bytes=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def _verify(path: Path, spec: FileSpec) -> None:
    if not path.is_file():
        raise ArtifactError(f"{path}: missing; export or copy the artifact again")
    size = path.stat().st_size
    if size != spec.bytes:
        raise ArtifactError(f"{path}: {size} bytes, the manifest says {spec.bytes}; export or copy the artifact again")
    if describe_file(path).sha256 != spec.sha256:
        raise ArtifactError(f"{path}: its sha256 is not the manifest's; export or copy the artifact again")
