"""What lies in a store: the files of a version, whether they are all there, and what a formula must fit."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from model.artifact.calibration import Calibration, CalibrationError
from model.artifact.manifest import (
    CALIBRATION,
    CANDIDATE_TOWER,
    GOLDEN,
    MANIFEST,
    TABLES,
    USER_TOWER,
    Artifact,
    ArtifactError,
    FileSpec,
    Manifest,
    describe_file,
    version_of,
)
from model.registry.errors import RegistryError, SignatureError
from model.registry.files import Files
from model.registry.signing import signers, verify

MODELS = "models"
_NEEDED = (USER_TOWER, CANDIDATE_TOWER, TABLES, GOLDEN, CALIBRATION)


@dataclass(frozen=True)
class Stored:
    """A version in a store."""

    version: str
    arch: str = ""  # empty when it has no manifest that can be read
    created: datetime | None = None  # UTC
    bytes: int = 0  # of what is there
    problem: str = ""  # why it cannot serve; empty when it is complete
    marks: tuple[str, ...] = ()  # of the pointer: active, previous, split, shadow
    signers: tuple[str, ...] = ()  # ids of the keys that signed it

    @property
    def complete(self) -> bool:
        return not self.problem


def place(version: str, name: str = "") -> str:
    """Where a version, or a file of it, lies in a store."""
    return str(PurePosixPath(MODELS, version, name))


def stored(files: Files, version: str, trusted_keys: Sequence[str]) -> Stored:
    """What is there of a version, by the names and sizes of its files."""
    sizes = files.sizes(place(version))
    there, signed = sum(sizes.values()), signers(tuple(sizes))
    try:
        manifest = read_manifest(files, version, trusted_keys)
    except (RegistryError, ArtifactError) as error:
        return Stored(version, bytes=there, problem=_short(error, files, version), signers=signed)
    problem = "; ".join(_differences(manifest, sizes))
    return Stored(version, manifest.arch, manifest.created, there, problem, signers=signed)


def read_manifest(files: Files, version: str, trusted_keys: Sequence[str]) -> Manifest:
    """The manifest of a version.  RegistryError without one, SignatureError, ArtifactError when it is another's."""
    try:
        content = files.read(place(version, MANIFEST))
    except FileNotFoundError:
        half = (
            "half-pushed: push it again" if files.sizes(place(version)) else "no such version; see `farm models list`"
        )
        raise RegistryError(f"{files.name}: {version}: {half}") from None
    manifest = parse_manifest(content, version)
    if trusted_keys:
        verify(content, lambda name: files.read(place(version, name)), trusted_keys, version)
    return manifest


def parse_manifest(content: bytes, version: str) -> Manifest:
    """ArtifactError when the bytes are not the manifest of this version, or name files outside the folder."""
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        raise ArtifactError(f"{version}: {MANIFEST}: {error}") from None
    if (found := version_of(manifest.created, content)) != version:
        raise ArtifactError(f"{version}: its {MANIFEST} is that of {found}; push the artifact again")
    check_files(manifest, version)
    return manifest


def check_files(manifest: Manifest, name: str) -> None:
    """ArtifactError when a manifest names a file outside the folder, or not all that a model needs."""
    for file in manifest.files:
        if (
            file in ("", ".", "..", MANIFEST)
            or PurePosixPath(file).name != file
            or "\\" in file
            or file.startswith(".")
        ):
            raise ArtifactError(f"{name}: manifest.files: {file!r} is no plain file name")
    if missing := [file for file in _NEEDED if file not in manifest.files]:
        raise ArtifactError(f"{name}: manifest.files: {', '.join(missing)} missing; export the model again")


def check_folder(folder: Path, version: str, trusted_keys: Sequence[str]) -> Artifact:
    """Verify every byte of an artifact folder, its version and its signature.  ArtifactError, SignatureError."""
    artifact = Artifact.open(folder)
    content = (folder / MANIFEST).read_bytes()
    parse_manifest(content, version)
    if trusted_keys:
        verify(content, lambda name: (folder / name).read_bytes(), trusted_keys, version)
    return artifact


def check_signed(folder: Path, trusted_keys: Sequence[str]) -> str:
    """Verify every byte of an artifact folder and its signature; its version.  ArtifactError, SignatureError."""
    version = Artifact.open(folder).version
    check_folder(folder, version, trusted_keys)
    return version


def holds(files: Files, path: str, spec: FileSpec, sizes: dict[str, int]) -> bool:
    """Whether a file is there as it should be: by checksum in a directory, elsewhere by its size."""
    if sizes.get(PurePosixPath(path).name) != spec.bytes:
        return False
    local = files.local(path)
    return local is None or describe_file(local) == spec


def check_sizes(files: Files, version: str, trusted_keys: Sequence[str]) -> Manifest:
    """The manifest of a version whose files are all there.  RegistryError, SignatureError, ArtifactError."""
    manifest = read_manifest(files, version, trusted_keys)
    if problems := _differences(manifest, files.sizes(place(version))):
        raise RegistryError(f"{files.name}: {version}: {'; '.join(problems)}; push the artifact again")
    return manifest


def check_complete(files: Files, version: str, trusted_keys: Sequence[str]) -> Manifest:
    """The same, and in a directory every checksum."""
    manifest = check_sizes(files, version, trusted_keys)
    sizes = files.sizes(place(version))
    for name, spec in manifest.files.items():
        if not holds(files, place(version, name), spec, sizes):
            raise ArtifactError(f"{files.name}: {version}: {name}: its sha256 is not the manifest's; push it again")
    return manifest


def calibration_of(files: Files, version: str, manifest: Manifest) -> Calibration:
    """The calibration of a version, verified.  ArtifactError."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, CALIBRATION)
        files.get(place(version, CALIBRATION), file)
        if describe_file(file) != manifest.files[CALIBRATION]:
            raise ArtifactError(
                f"{files.name}: {version}: {CALIBRATION}: its sha256 is not the manifest's; push it again"
            )
        return load_calibration(file, manifest, version)


def load_calibration(file: Path, manifest: Manifest, name: str) -> Calibration:
    try:
        return Calibration.load(file, manifest.view.tasks)
    except CalibrationError as error:
        raise ArtifactError(f"{name}: {CALIBRATION}: {error}") from None


def _differences(manifest: Manifest, sizes: dict[str, int]) -> list[str]:
    missing = [name for name in manifest.files if name not in sizes]
    other = [name for name, spec in manifest.files.items() if name in sizes and sizes[name] != spec.bytes]
    found = [f"{', '.join(missing)} missing"] if missing else []
    return [*found, *(f"{name}: {sizes[name]} bytes, the manifest says {manifest.files[name].bytes}" for name in other)]


def _short(error: Exception, files: Files, version: str) -> str:
    """A message without the names of store and version, which the table shows beside it."""
    if isinstance(error, SignatureError):
        return "no signature by a trusted key that holds"
    text = str(error).splitlines()[0]
    return text.removeprefix(f"{files.name}: ").removeprefix(f"{version}: ")
