"""The pointers of a store: one file a number, created once and never changed; the highest number serves.

To replace the pointer n is to create the file n + 1, which only one can.
"""

from __future__ import annotations

import re

from model.registry.errors import PointerConflictError, RegistryError
from model.registry.files import Files
from model.registry.pointer import Pointer

POINTERS = "pointers"
_NAME = re.compile(r"(\d{8,})\.json")


class Pointers:
    """Remembers the last number it saw, so that looking again asks for two small files and lists nothing."""

    def __init__(self, files: Files) -> None:
        self._files, self._seen = files, 0

    def read(self) -> Pointer | None:
        """The one that serves now.  RegistryError when it cannot be read."""
        found = self._get(self._seen) if self._seen else None
        if found is None:  # never looked, or a store that was put back to an earlier state
            found = self._get(max(self.numbers(), default=0))
        while found is not None and (later := self._get(found.number + 1)) is not None:
            found = later
        self._seen = found.number if found else 0
        return found

    def get(self, number: int) -> Pointer:
        """An earlier one.  RegistryError when it is not there any more."""
        found = self._get(number)
        if found is None:
            raise RegistryError(f"{self._files.name}: {_path(number)} is gone; activate a version instead")
        return found

    def numbers(self) -> list[int]:
        """Of all pointers that are kept, rising."""
        matches = map(_NAME.fullmatch, self._files.sizes(POINTERS))
        return sorted(int(match[1]) for match in matches if match)

    def replace(self, pointer: Pointer, expected_number: int) -> None:
        """Make `pointer` the one that serves if `expected_number` (0: none) is now.  PointerConflictError otherwise."""
        if pointer.number != expected_number + 1:
            raise ValueError(f"pointer.number: {pointer.number}, must follow the expected {expected_number}")
        current = self.read()
        number = current.number if current else 0
        if number != expected_number:
            raise PointerConflictError(f"{self._files.name}: expected pointer {expected_number}, there is {number} now")
        try:
            self._files.create(_path(pointer.number), pointer.to_json())
        except FileExistsError:
            raise PointerConflictError(
                f"{self._files.name}: somebody else wrote pointer {pointer.number} just now"
            ) from None

    def _get(self, number: int) -> Pointer | None:
        if number < 1:
            return None
        try:
            content = self._files.read(_path(number))
        except FileNotFoundError:
            return None
        return Pointer.parse(content, f"{self._files.name}: {_path(number)}")


def _path(number: int) -> str:
    return f"{POINTERS}/{number:08}.json"
