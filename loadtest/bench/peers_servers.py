"""Of `farm bench peers`: peers as processes on a core of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import feature_store
import model
from loadtest.peers.model import HOST, ROUTE, PeerSettings

START_S = 120.0
_STOP_S = 15.0
_MARK = "FARM_PEER_RUN"  # in the environment of every process of a peer: some leave the process group and the session
_TAIL = 600  # characters of a failed peer's output


class PeerFailedError(RuntimeError):
    """A peer could not be installed or did not start."""


@dataclass(frozen=True)
class PeerServer:
    """A running peer."""

    url: str
    mark: str

    def pids(self) -> list[int]:
        """Its processes."""
        return _marked(self.mark)


@contextmanager
def running_peer(
    python: Path,
    name: str,
    settings: PeerSettings,
    probe: bytes,
    cpus: set[int] | None = None,
    options: Mapping[str, str] | None = None,
) -> Iterator[PeerServer]:
    """The peer `name`, run by the interpreter of its environment, when it has answered `probe`; ended at the end.

    cpus: the only ones that its processes run on.  options: of its environment.
    PeerFailedError with the end of its output when it ends or does not answer in time.
    """
    mark = uuid.uuid4().hex
    with tempfile.TemporaryDirectory(prefix="farm-peer-", ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch)
        environment = {**_environment(folder), **settings.environment(), **(options or {}), _MARK: mark}
        server = PeerServer(f"http://{HOST}:{settings.port}", mark)
        with (folder / "log").open("w+") as log:
            command = [str(python), "-m", f"loadtest.peers.{name}_app"]
            process = _start(command, environment, folder, log.fileno(), cpus)
            try:
                _wait_until_ready(process, server, probe, name, folder / "log")
                yield server
            finally:
                _stop(process, mark)


def _environment(folder: Path) -> dict[str, str]:
    """Ours, with what a peer imports of this project and nothing else of our environment."""
    code = folder / "code"
    code.mkdir()
    for package in (feature_store, model):
        (code / package.__name__).symlink_to(Path(package.__path__[0]), target_is_directory=True)
    (code / "loadtest").symlink_to(Path(__file__).parent.parent, target_is_directory=True)
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    files = dict.fromkeys(("HOME", "TMPDIR", "RAY_TMPDIR"), str(folder))
    quiet = {
        "OMP_NUM_THREADS": "1",
        "BENTOML_DO_NOT_TRACK": "true",
        "DO_NOT_TRACK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    return {**ours, **quiet, **files, "PYTHONPATH": str(code), "PYTHONUNBUFFERED": "1"}


def _start(
    command: Sequence[str], environment: dict[str, str], folder: Path, log: int, cpus: set[int] | None
) -> subprocess.Popen[bytes]:
    """With the affinity that all of its processes inherit."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus or allowed)
    try:
        return subprocess.Popen(
            command,
            env=environment,
            cwd=folder,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    finally:
        os.sched_setaffinity(0, allowed)


def _wait_until_ready(process: subprocess.Popen[bytes], server: PeerServer, probe: bytes, name: str, log: Path) -> None:
    ends = time.monotonic() + START_S
    while time.monotonic() < ends and process.poll() is None:
        if _answers(server.url, probe):
            return
        time.sleep(0.1)
    reason = f"not ready in {START_S:g} s" if process.poll() is None else f"exit status {process.returncode}"
    raise PeerFailedError(f"{name}: {reason}: {log.read_text(errors='replace')[-_TAIL:].strip()}")


def _answers(url: str, probe: bytes) -> bool:
    try:
        ask(url, probe)
    except (OSError, urllib.error.URLError):
        return False
    return True


def ask(url: str, body: bytes) -> bytes:
    """One ranking.  OSError when there is none."""
    request = urllib.request.Request(url + ROUTE, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        content: bytes = answer.read()
    return content


def _stop(process: subprocess.Popen[bytes], mark: str) -> None:
    """SIGTERM to its first process, then SIGKILL to whatever is left of it."""
    for pid in _marked(mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)  # it may have been stopped
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_S)
    while left := _marked(mark):
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.poll()
        time.sleep(0.05)
    process.wait()


def _marked(mark: str) -> list[int]:
    """Processes with this mark in their environment, zombies not among them."""
    wanted = f"{_MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
    return found
