"""Transactions of one LMDB folder, its map grown when it is full, and every failure told as one StoreError."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias, TypeVar

import lmdb

from feature_store.store import StoreError

MAP_SIZE = 1 << 36  # bytes of address space, not of disk; doubled when it is full
_MAX_READERS = 1024  # simultaneous reads of all processes

_T = TypeVar("_T")
Txn: TypeAlias = "lmdb.Transaction[bytes]"


class Environment:
    """A folder, opened.  Open it once, in the process that uses it, not before a fork."""

    def __init__(self, path: Path, map_size: int) -> None:
        self.path = path
        self._pid = os.getpid()
        self._writing = threading.Lock()  # one writer of this process at a time; taken before _mapping
        self._mapping = threading.Lock()  # held by reads, because the map must not move under them
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._env = lmdb.open(str(path), map_size, max_readers=_MAX_READERS, max_dbs=8)
            self._env.reader_check()
        except (lmdb.Error, OSError) as error:
            raise StoreError(f"store {path} cannot be opened: {error}") from error

    def table(self, name: bytes, txn: Txn, create: bool) -> lmdb._Database:
        """A table, to be opened in a write: py-lmdb drops a table's handle when a read opened it."""
        return self._env.open_db(name, txn, create=create)

    def read(self, work: Callable[[Txn], _T]) -> _T:
        """Run `work` in a transaction that sees one moment and waits for no writer."""
        self._require_own_process()
        while True:
            try:
                with self._mapping, self._env.begin() as txn:
                    return work(txn)
            except lmdb.MapResizedError:
                with self._writing:
                    self._resize(0)
            except lmdb.ReadersFullError as error:
                if not self._env.reader_check():
                    raise StoreError(f"store {self.path}: more than {_MAX_READERS} reads at once") from error
            except lmdb.Error as error:
                raise StoreError(f"store {self.path}: {error}") from error

    def write(self, work: Callable[[Txn], _T]) -> _T:
        """Run `work` in one transaction, again from the start when the map had to grow."""
        self._require_own_process()
        with self._writing:
            while True:
                try:
                    self._env.reader_check()  # the dead would keep old pages from being used again
                    with self._env.begin(write=True) as txn:
                        return work(txn)
                except lmdb.MapFullError:
                    self._resize(2 * self._env.info()["map_size"])
                except lmdb.MapResizedError:
                    self._resize(0)
                except lmdb.Error as error:
                    raise StoreError(f"store {self.path}: {error}") from error

    def sizes(self) -> tuple[int, int, int]:
        """Bytes on disk, of the map, and of the map in use."""
        on_disk = (self.path / "data.mdb").stat().st_blocks * 512
        info, page = self._env.info(), self._env.stat()["psize"]
        return on_disk, info["map_size"], (info["last_pgno"] + 1) * page

    def close(self) -> None:
        """Wait for what is under way."""
        with self._writing, self._mapping:
            self._env.close()

    def _resize(self, map_size: int) -> None:
        """0 takes the size that another process gave it.  Call with _writing held."""
        with self._mapping:
            self._env.set_mapsize(map_size)

    def _require_own_process(self) -> None:
        if os.getpid() != self._pid:
            raise StoreError(f"store {self.path} was opened before a fork: open it in the process that uses it")
