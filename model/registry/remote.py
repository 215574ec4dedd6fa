"""A store on any file system that fsspec knows: s3://, gs://, az://, sftp://, memory:// and others.

What the URL cannot say (keys, regions, endpoints) fsspec reads from its own configuration and environment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from model.registry.errors import RegistryError


class FsspecFiles:
    """Files of an fsspec file system, always asked anew: its caches of listings would hide another's writes."""

    def __init__(self, system: Any, root: str, name: str) -> None:
        """system: an fsspec file system;  root: of the store, without protocol."""
        self._system, self._root, self.name = system, root.rstrip("/"), name
        bare = root.lstrip("/")
        self._top = root[: len(root) - len(bare)] + bare.split("/")[0]  # a bucket is not made by the way

    @classmethod
    def open(cls, url: str) -> FsspecFiles:
        """RegistryError when fsspec, or the package for this kind of URL, is missing, or the URL is none."""
        name = _without_password(url)
        if "::" in url:
            raise RegistryError(f"{name}: a chain of file systems may cache, and a pointer must be read anew; use one")
        try:
            from fsspec.core import url_to_fs

            system, root = url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise RegistryError(f"{name}: {error}; install the extra `models` and fsspec's package for it") from error
        except Exception as error:  # of the file system behind fsspec
            raise RegistryError(f"{name}: {_text(error)}") from error
        return cls(system, root, name)

    def read(self, path: str) -> bytes:
        with self._told():
            content: bytes = self._system.cat_file(self._at(path))
        return content

    def write(self, path: str, content: bytes) -> None:
        with self._told():
            self._pipe(path, content)

    def create(self, path: str, content: bytes) -> None:
        """One wins where the file system can create exclusively; elsewhere all but the last may be told so too late."""
        failure: Exception | None = None
        try:
            with self._told():
                self._pipe(path, content, mode="create")
        except (FileExistsError, RegistryError) as error:
            failure = error
        # Tried again after a lost answer, a creation that succeeded is refused; only what is there now tells.
        try:
            there = self.read(path)
        except FileNotFoundError:
            raise failure or RegistryError(f"{self.name}: {path} is not there after it was written") from failure
        if there != content:
            raise FileExistsError(path) from failure

    def put(self, source: Path, path: str) -> None:
        with self._told():
            self._making_folder(path, lambda: self._system.put_file(str(source), self._at(path)))

    def get(self, path: str, target: Path) -> None:
        with self._told():
            self._system.get_file(self._at(path), str(target))

    def sizes(self, folder: str) -> dict[str, int]:
        return {name: int(entry["size"] or 0) for name, entry in self._entries(folder) if entry["type"] == "file"}

    def folders(self, folder: str) -> list[str]:
        return [name for name, entry in self._entries(folder) if entry["type"] == "directory"]

    def local(self, path: str) -> None:
        return None

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}"

    def _entries(self, folder: str) -> list[tuple[str, dict[str, Any]]]:
        place = self._at(folder)
        try:
            with self._told():
                self._system.invalidate_cache()
                found = self._system.ls(place, detail=True)
        except FileNotFoundError:
            return []
        named = [(str(entry["name"]).rstrip("/").rsplit("/", 1)[-1], entry) for entry in found]
        itself = place.rsplit("/", 1)[-1]  # object stores may list a folder's own marker
        return sorted((pair for pair in named if pair[0] != itself), key=lambda pair: pair[0])

    def _pipe(self, path: str, content: bytes, **options: str) -> None:
        self._making_folder(path, lambda: self._system.pipe_file(self._at(path), content, **options))

    def _making_folder(self, path: str, write: Callable[[], None]) -> None:
        """Object stores have no folders to make; others say that one is missing."""
        try:
            write()
        except FileNotFoundError:
            if not self._system.exists(self._top):
                raise RegistryError(f"{self.name}: there is no {self._top}; make it first") from None
            self._system.makedirs(self._at(path).rsplit("/", 1)[0], exist_ok=True)
            write()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, FileExistsError, RegistryError):
            raise
        except Exception as error:  # each file system behind fsspec has its own
            raise RegistryError(f"{self.name}: {_text(error)}") from error


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return url.replace(f"{parts.netloc}", parts.netloc.rsplit("@", 1)[-1], 1) if "@" in parts.netloc else url
