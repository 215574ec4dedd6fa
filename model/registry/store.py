"""The artifact store: versions of models, and the pointer that says which of them serves."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from model.artifact.formula import Formula
from model.artifact.manifest import CALIBRATION, MANIFEST, Artifact, Manifest
from model.registry.cache import fetch as fetch_to
from model.registry.contents import (
    MODELS,
    Stored,
    calibration_of,
    check_complete,
    check_files,
    check_folder,
    holds,
    load_calibration,
    place,
    read_manifest,
    stored,
)
from model.registry.errors import PointerConflictError, RegistryError
from model.registry.files import Files, open_files
from model.registry.pointer import Earlier, Pointer, Shadow, Split, check_version, is_version, versions_of, whoami
from model.registry.pointers import Pointers
from model.registry.signing import check_keys, signature_name, signers, verify

Keep = Literal["keep"]


class ArtifactStore:
    """A directory, or a place that fsspec reaches.

    Everything raises RegistryError (or its kinds SignatureError and PointerConflictError) for the store, and
    ArtifactError for a spoilt artifact; all are ValueErrors with a message for people.
    """

    def __init__(self, files: Files, trusted_keys: Sequence[str] = ()) -> None:
        self._files, self._pointers = files, Pointers(files)
        self._trusted_keys = check_keys(trusted_keys)
        self.name = files.name

    @classmethod
    def open(cls, url: str | Path, trusted_keys: Sequence[str] = ()) -> ArtifactStore:
        """trusted_keys: public keys; with any, an artifact that none of them signed is refused.  Nothing is created."""
        return cls(open_files(str(url)), trusted_keys)

    def push(self, folder: str | Path) -> str:
        """Copy an artifact into the store, verified first; returns its version.  To push again mends what is missing.

        The manifest comes last: until then nobody takes the version for complete.
        """
        artifact = Artifact.open(folder)
        content = (artifact.path / MANIFEST).read_bytes()
        self._check_pushable(artifact, content)
        sizes = self._files.sizes(place(artifact.version))
        for name, spec in artifact.manifest.files.items():
            path = place(artifact.version, name)
            if not holds(self._files, path, spec, sizes):
                self._files.put(artifact.path / name, path)
        for name in map(signature_name, signers([file.name for file in artifact.path.iterdir()])):
            self._files.put(artifact.path / name, place(artifact.version, name))
        self._files.write(place(artifact.version, MANIFEST), content)
        check_complete(self._files, artifact.version, self._trusted_keys)
        return artifact.version

    def list(self) -> tuple[Stored, ...]:
        """Every version, the oldest first, those that are not complete too."""
        marks = self._marks()
        names = [name for name in self._files.folders(MODELS) if is_version(name)]
        found = (stored(self._files, name, self._trusted_keys) for name in names)
        return tuple(dataclasses.replace(one, marks=marks.get(one.version, ())) for one in found)

    def check(self, version: str) -> Manifest:
        """The manifest of a complete version; in a directory every checksum is verified, elsewhere every size."""
        return check_complete(self._files, check_version(version), self._trusted_keys)

    def fetch(self, version: str, cache: Path | None = None) -> Path:
        """A folder of this machine with the version, every checksum verified: in `cache`, or in a directory store.

        Safe for several processes at once; a folder in the cache is complete and verified, or not there.
        """
        check_version(version)
        if cache is not None:
            return fetch_to(self._files, version, Path(cache), self._trusted_keys)
        folder = self._files.local(place(version))
        if folder is None:
            raise RegistryError(f"{self.name}: is not on this machine; give a folder for copies")
        read_manifest(self._files, version, self._trusted_keys)
        check_folder(folder, version, self._trusted_keys)
        return folder

    def read_pointer(self) -> Pointer | None:
        """What serves; None as long as nothing was activated.  Cheap enough to ask every second."""
        return self._pointers.read()

    def replace_pointer(self, pointer: Pointer, expected_number: int) -> None:
        """Make `pointer` (number expected_number + 1) the one that serves, at once and as a whole.

        PointerConflictError when the current number is not `expected_number` (0: none).  Of several writers one
        succeeds, in a directory and wherever the file system can create a file exclusively.
        """
        self._pointers.replace(pointer, expected_number)

    def propose(
        self,
        version: str,
        formula: Formula | Keep | None = "keep",
        shadow: Shadow | None = None,
        split: Split | None = None,
        by: str | None = None,
    ) -> Pointer:
        """The pointer that would make a version serve; the current one when that would change nothing.

        formula: None is the default formula, "keep" the one that is active.  RegistryError, SignatureError or
        ArtifactError when a version is not complete or does not fit the formula.
        """
        current = self.read_pointer()
        if formula == "keep":
            formula = current.formula if current else None
        fitting = {name: self._fit(name, formula) for name in versions_of(version, split, shadow)}
        proposed = Pointer(
            number=current.number + 1 if current else 1,
            model=version,
            formula=formula,
            calibration=fitting[version],
            shadow=shadow,
            split=split,
            at=datetime.now(UTC),
            by=by or whoami(),
        )
        return proposed if current is None else _after(current, proposed)

    def activate(
        self,
        version: str,
        formula: Formula | Keep | None = "keep",
        shadow: Shadow | None = None,
        split: Split | None = None,
        by: str | None = None,
    ) -> Pointer:
        """`propose`, and replace the pointer by it if it changes anything.  PointerConflictError."""
        current = self.read_pointer()
        proposed = self.propose(version, formula, shadow, split, by)
        if current is None or proposed.number != current.number:
            self.replace_pointer(proposed, proposed.number - 1)
        return proposed

    def propose_rollback(self, by: str | None = None, expected_number: int | None = None) -> Pointer:
        """The pointer that would return to the model, formula and split of before, without a shadow.

        expected_number: of the pointer to leave; PointerConflictError when another one serves by now.
        RegistryError when there is nothing to return to, or it is not complete.
        """
        current = self.read_pointer()
        if current is None or current.previous is None:
            raise RegistryError(f"{self.name}: nothing to roll back to")
        if expected_number not in (None, current.number):
            raise PointerConflictError(
                f"{self.name}: expected pointer {expected_number}, there is {current.number} now"
            )
        earlier = self._pointers.get(current.previous.number)
        for version in versions_of(earlier.model, earlier.split, None):
            self._fit(version, earlier.formula)
        update = {"number": current.number + 1, "shadow": None, "at": datetime.now(UTC), "by": by or whoami()}
        return earlier.model_copy(update=update)

    def rollback(self, by: str | None = None, expected_number: int | None = None) -> Pointer:
        """`propose_rollback`, and replace the pointer by it; again, by what was before that.  PointerConflictError."""
        pointer = self.propose_rollback(by, expected_number)
        self.replace_pointer(pointer, pointer.number - 1)
        return pointer

    def _fit(self, version: str, formula: Formula | None) -> str:
        """The hash of a complete version's calibration.  RegistryError when the formula is not for it."""
        manifest = self.check(version)
        calibration = calibration_of(self._files, version, manifest)
        try:
            (formula or Formula()).check(manifest.view.tasks, calibration.hash)
        except ValueError as error:
            raise RegistryError(f"{version}: {error}; give a formula that was made for it") from None
        return calibration.hash

    def _check_pushable(self, artifact: Artifact, content: bytes) -> None:
        check_files(artifact.manifest, str(artifact.path))
        load_calibration(artifact.path / CALIBRATION, artifact.manifest, str(artifact.path))
        if self._trusted_keys:
            verify(content, lambda name: (artifact.path / name).read_bytes(), self._trusted_keys, str(artifact.path))
        try:
            there = self._files.read(place(artifact.version, MANIFEST))
        except FileNotFoundError:
            return
        if there != content:
            raise RegistryError(f"{self.name}: {artifact.version}: holds another manifest; a version is never changed")

    def _marks(self) -> dict[str, tuple[str, ...]]:
        pointer = self.read_pointer()
        if pointer is None:
            return {}
        marked = {"active": pointer.model}
        if pointer.previous is not None:
            marked["previous"] = pointer.previous.model
        for mark, part in (("split", pointer.split), ("shadow", pointer.shadow)):
            if part is not None:
                marked[mark] = part.version
        return {version: tuple(m for m, v in marked.items() if v == version) for version in marked.values()}


def _after(current: Pointer, proposed: Pointer) -> Pointer:
    """With what a rollback would return to; a shadow changes no answer, so there is nothing in it to return from."""
    if not proposed.answers_like(current):
        return proposed.model_copy(update={"previous": Earlier(number=current.number, model=current.model)})
    if proposed.shadow == current.shadow:
        return current
    return proposed.model_copy(update={"previous": current.previous})
