"""The keys that are good now: from a file, which may change while the service runs, and from the environment."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

from service.doors.keys import StoredKey, matching, parse_keys

_POLL_S = 1.0
_Signature = tuple[int, int, int] | None  # of a file: changed when its content has; None: there is none

_log = logging.getLogger(__name__)


class KeyRing:
    """Reads the file again within a second of its change, when a key is asked for.

    A new file that is broken changes nothing and is logged; one without any key locks all out.  Replace the file by
    renaming, so that no half of it is ever read.
    """

    def __init__(self, file: Path | None = None, lines: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        """lines: keys that are not in the file, as it would hold them.  ValueError: what is wrong, or there is none."""
        self._file, self._clock = file, clock
        self._fixed = parse_keys(lines, "FARM_API_KEYS")
        self._signature, self._next_poll = self._sign(), clock() + _POLL_S
        self._complaint = ""  # about a file that is not read yet
        self._keys = self._read()
        if not self._keys and (file is not None or lines.strip()):
            raise ValueError(f"{file or 'FARM_API_KEYS'} holds no key; `farm keys new` makes one")

    @property
    def configured(self) -> bool:
        """Whether keys are asked for at all."""
        return self._file is not None or bool(self._fixed)

    def find(self, given: bytes) -> StoredKey | None:
        """The key that `given` is, also when it has expired; None: nobody's."""
        if self._file is not None and self._clock() >= self._next_poll:
            self._poll()
        return matching(self._keys, given)

    def _poll(self) -> None:
        self._next_poll = self._clock() + _POLL_S
        signature = self._sign()
        if signature == self._signature:
            return
        try:
            self._keys = self._read()
        except ValueError as error:  # perhaps it can be read the next time
            if str(error) != self._complaint:
                self._complaint = str(error)
                _log.error("the keys stay as they were: %s", error)
        else:
            self._signature, self._complaint = signature, ""
            _log.warning("keys were read again: %d are known", len(self._keys))

    def _read(self) -> dict[str, StoredKey]:
        if self._file is None:
            return self._fixed
        found = parse_keys(_text(self._file), str(self._file))
        if twice := found.keys() & self._fixed.keys():
            raise ValueError(f"{self._file}: the id {min(twice)} is in FARM_API_KEYS too; each key has its own")
        return self._fixed | found

    def _sign(self) -> _Signature:
        if self._file is None:
            return None
        try:
            found = self._file.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino


def refuse_open(address: str, ring: KeyRing, may_be_open: bool, option: str) -> None:
    """ValueError when anybody else than this machine could ask a service without keys.

    address: that the port is bound to, numbers.  option: that gives it.
    """
    if ring.configured or may_be_open or ip_address(address.partition("%")[0]).is_loopback:
        return
    raise ValueError(
        f"{option} {address} lets everybody in: give keys (FARM_API_KEYS_FILE, see `farm keys new`), "
        "or say --open when something else keeps strangers out"
    )


def add_to_file(file: Path, key: StoredKey) -> None:
    """At its end, by renaming; a new file is for its owner alone.  ValueError when what is there is no file of keys."""
    before = _text(file) if file.exists() else ""
    parse_keys(before, str(file))
    mode = file.stat().st_mode & 0o777 if before else 0o600
    written = file.with_name(f".{file.name}.{key.id}")
    written.touch(0o600)
    written.write_text("".join([before, "\n" if before and not before.endswith("\n") else "", key.line(), "\n"]))
    written.chmod(mode)
    written.replace(file)


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the file of keys {file} cannot be read: {error}") from None
