"""Of `farm bench peers`: a virtual environment for each peer, made once and kept."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loadtest.bench.peers_servers import PeerFailedError


@dataclass(frozen=True)
class Peer:
    """A framework, as it is used."""

    app: str  # loadtest.peers.<app>_app, requirements-<app>.txt
    options: Mapping[str, str] = field(default_factory=dict)  # of its environment
    ports: tuple[str, ...] = ()  # options that each take a free one


_HAPROXY = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
}
_HAPROXY_PORTS = ("RAY_SERVE_HAPROXY_METRICS_PORT", "RAY_SERVE_HAPROXY_STATS_PORT")

PEERS = {
    "fastapi": Peer("fastapi"),
    "litserve": Peer("litserve"),
    "bentoml": Peer("bentoml"),
    "mosec": Peer("mosec"),
    "ray": Peer("ray"),
    "ray-haproxy": Peer("ray", _HAPROXY, _HAPROXY_PORTS),  # not its default, and more than twice as fast
}

_INSTALL_S = 900.0
_TAIL = 600  # characters of a failed installer's output


def requirements(peer: str) -> Path:
    """The file that pins what a peer needs."""
    return Path(__file__).parent.parent / "peers" / f"requirements-{peer}.txt"


def peer_python(peer: str, folder: Path) -> Path:
    """The interpreter of a peer's environment in `folder`, which is made when it is not there or of other pins.

    By uv where there is one, else by venv and pip.  PeerFailedError with the end of what the installer wrote.
    """
    home, pins = folder.resolve() / peer, requirements(peer)
    stamp, wanted = home / "pins.sha256", hashlib.sha256(pins.read_bytes()).hexdigest()
    python = home / "bin" / "python"
    if not stamp.is_file() or stamp.read_text() != wanted:
        shutil.rmtree(home, ignore_errors=True)
        for command in _commands(home, python, pins):
            _run(peer, command)
        stamp.write_text(wanted)
    return python


def _commands(home: Path, python: Path, pins: Path) -> list[list[str]]:
    if uv := shutil.which("uv"):
        install = [uv, "pip", "install", "--quiet", "--python", str(python), "-r", str(pins)]
        return [[uv, "venv", "--quiet", "--python", sys.executable, str(home)], install]
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(pins)]
    return [[sys.executable, "-m", "venv", str(home)], pip]


def _run(peer: str, command: Sequence[str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_INSTALL_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerFailedError(f"{peer}: cannot be installed: {error}") from None
    if done.returncode != 0:
        raise PeerFailedError(f"{peer}: cannot be installed: {(done.stdout + done.stderr)[-_TAIL:].strip()}")
