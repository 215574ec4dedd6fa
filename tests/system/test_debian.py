"""What needs a Debian program: `make test-system`.  Each test names the program that it was skipped for."""

from __future__ import annotations

import subprocess

import pytest
from debian_programs import ROOT, program, run

pytestmark = pytest.mark.debian


def test_prometheus_accepts_its_configuration() -> None:
    promtool = program("promtool", "prometheus")
    print(run(promtool, "check", "config", ROOT / "deploy" / "prometheus" / "prometheus.yml"))


def test_compose_accepts_its_file() -> None:
    docker = program("docker", "docker.io")
    if subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode != 0:
        pytest.skip("docker has no compose plugin; Debian's package docker-compose-plugin or docker-compose has it")
    print(run(docker, "compose", "-f", ROOT / "deploy" / "docker-compose.yml", "config", "--quiet"))
