"""What needs a Debian program: `make test-system`.  Each test names the program that it was skipped for."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.debian


def program(name: str, package: str) -> str:
    """The path of a program; the test is skipped, with the reason, where it is absent."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is absent; Debian's package {package} has it")
    return path


def run(*command: str | Path) -> str:
    """Run a program; its output, which is the message when it fails."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_prometheus_accepts_its_configuration() -> None:
    promtool = program("promtool", "prometheus")
    print(run(promtool, "check", "config", ROOT / "deploy" / "prometheus" / "prometheus.yml"))


def test_compose_accepts_its_file() -> None:
    docker = program("docker", "docker.io")
    if subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode != 0:
        pytest.skip("docker has no compose plugin; Debian's package docker-compose-plugin or docker-compose has it")
    print(run(docker, "compose", "-f", ROOT / "deploy" / "docker-compose.yml", "config", "--quiet"))
