"""Where a store lies: a directory of this machine here, any other file system in `remote`."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from model.registry.errors import RegistryError

_TEMPORARY = ".tmp-"


class Files(Protocol):
    """Files by path below the root of a store, with / between the parts."""

    name: str  # of the store, for messages; holds no password

    def read(self, path: str) -> bytes:
        """The content.  FileNotFoundError."""

    def write(self, path: str, content: bytes) -> None:
        """Create or replace a small file."""

    def create(self, path: str, content: bytes) -> None:
        """Create a small file.  FileExistsError when it is there: of several who try, one succeeds."""

    def put(self, source: Path, path: str) -> None:
        """Copy a file into the store."""

    def get(self, path: str, target: Path) -> None:
        """Copy a file out of the store.  FileNotFoundError."""

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of the files of a folder by name; empty when it is not there."""

    def folders(self, folder: str) -> list[str]:
        """Names of the folders in a folder; empty when it is not there."""

    def local(self, path: str) -> Path | None:
        """Where the file system of this machine has it; None when it has not."""


def open_files(url: str) -> Files:
    """A path or file:// URL is a directory; any other URL is given to fsspec."""
    scheme = urlsplit(url).scheme
    if "://" not in url:
        return DirectoryFiles(Path(url))
    if scheme == "file":
        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost"):
            raise RegistryError(f"{url}: a directory of this machine is written file:///path")
        return DirectoryFiles(Path(unquote(parts.path)))
    from model.registry.remote import FsspecFiles

    return FsspecFiles.open(url)


class DirectoryFiles:
    """A directory, also one that several machines mount: a file is there as a whole or not at all."""

    def __init__(self, root: Path) -> None:
        self.root, self.name = root, str(root)

    def read(self, path: str) -> bytes:
        with self._told():
            return (self.root / path).read_bytes()

    def write(self, path: str, content: bytes) -> None:
        with self._told(), _replacing(self.root / path) as temporary:
            temporary.write_bytes(content)

    def create(self, path: str, content: bytes) -> None:
        target = self.root / path
        with self._told(), locked(self.root / ".lock"):
            if target.exists():
                raise FileExistsError(path)
            with _replacing(target) as temporary:
                temporary.write_bytes(content)

    def put(self, source: Path, path: str) -> None:
        with self._told(), _replacing(self.root / path) as temporary:
            shutil.copyfile(source, temporary)

    def get(self, path: str, target: Path) -> None:
        with self._told():
            shutil.copyfile(self.root / path, target)

    def sizes(self, folder: str) -> dict[str, int]:
        with self._told():
            return {entry.name: entry.stat().st_size for entry in self._entries(folder) if entry.is_file()}

    def folders(self, folder: str) -> list[str]:
        with self._told():
            return [entry.name for entry in self._entries(folder) if entry.is_dir()]

    def local(self, path: str) -> Path:
        return self.root / path

    def _entries(self, folder: str) -> list[Path]:
        place = self.root / folder
        found = sorted(place.iterdir()) if place.is_dir() else []
        return [entry for entry in found if not entry.name.startswith(_TEMPORARY)]

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, FileExistsError):
            raise
        except OSError as error:
            raise RegistryError(
                f"{self.name}: {error.strerror or error} ({error.filename or 'artifact store'})"
            ) from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file against every other process, and thread, that asks for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A file to write that takes the target's place at the end, on disk before it is seen."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{_TEMPORARY}{secrets.token_hex(8)}")
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(target)
        _sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Of a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
