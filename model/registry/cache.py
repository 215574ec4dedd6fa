"""Copies of versions on this machine, shared by its processes: a folder is complete and verified, or not there."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

from model.artifact.manifest import MANIFEST, ArtifactError
from model.registry.contents import check_folder, check_sizes, place
from model.registry.errors import RegistryError, SignatureError
from model.registry.files import Files, locked
from model.registry.signing import key_id, signature_name

_PART = ".part-"


def fetch(files: Files, version: str, cache: Path, trusted_keys: Sequence[str]) -> Path:
    """A verified copy of a version.  RegistryError, SignatureError, ArtifactError; then nothing is left behind."""
    folder = cache / version
    try:
        with locked(cache / f".lock-{version}"):
            if not (folder.is_dir() and _verified(folder, version, trusted_keys)):
                _renew(files, version, cache, trusted_keys)
    except OSError as error:
        raise RegistryError(f"{cache}: {error.strerror or error} ({error.filename or 'folder for copies'})") from error
    return folder


def prune(cache: Path, keep: Collection[str]) -> None:
    """Remove the copies of all versions but these.  A process that has them open is not disturbed."""
    for folder in cache.iterdir() if cache.is_dir() else ():
        if folder.is_dir() and not folder.name.startswith(".") and folder.name not in keep:
            with locked(cache / f".lock-{folder.name}"):
                folder.rename(_part_of(cache, folder.name))
                _remove_parts(cache, folder.name)


def _renew(files: Files, version: str, cache: Path, trusted_keys: Sequence[str]) -> None:
    """Under the lock of the version."""
    _remove_parts(cache, version)
    part, folder = _part_of(cache, version), cache / version
    try:
        _copy(files, version, part, trusted_keys)
        check_folder(part, version, trusted_keys)
        if folder.exists():  # spoilt; whoever has its files open keeps them
            folder.rename(_part_of(cache, version))
        part.rename(folder)
    finally:
        _remove_parts(cache, version)


def _verified(folder: Path, version: str, trusted_keys: Sequence[str]) -> bool:
    try:
        check_folder(folder, version, trusted_keys)
    except (ArtifactError, SignatureError, FileNotFoundError):
        return False
    return True


def _copy(files: Files, version: str, part: Path, trusted_keys: Sequence[str]) -> None:
    """The files that the manifest names, once it is known to be signed, and the signatures."""
    manifest = check_sizes(files, version, trusted_keys)
    part.mkdir(parents=True)
    for name in (MANIFEST, *manifest.files):
        try:
            files.get(place(version, name), part / name)
        except FileNotFoundError:
            raise RegistryError(f"{files.name}: {version}: {name} is gone; was the version removed?") from None
    for name in map(signature_name, map(key_id, trusted_keys)):
        try:
            files.get(place(version, name), part / name)
        except FileNotFoundError:
            (part / name).unlink(missing_ok=True)


def _part_of(cache: Path, version: str) -> Path:
    return cache / f"{_PART}{version}-{secrets.token_hex(4)}"


def _remove_parts(cache: Path, version: str) -> None:
    """Under the lock of the version, so that all of them are left from a process that died."""
    for part in cache.glob(f"{_PART}{version}-*"):
        shutil.rmtree(part)
