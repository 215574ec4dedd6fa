"""The files of deploy/ name what there is: build targets, mounted files, the metrics port."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import Settings

ROOT = Path(__file__).parent.parent
COMPOSE = ROOT / "deploy" / "docker-compose.yml"


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """The compose file's services."""
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
    return found


def test_build_targets_are_stages_of_the_dockerfile(services: dict[str, Any]) -> None:
    stages = re.findall(r"^FROM .* AS (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    targets = [service["build"]["target"] for service in services.values() if "build" in service]
    assert targets == ["train", "serve"]
    assert set(targets) <= set(stages)


def test_what_the_dockerfile_copies_is_there() -> None:
    for line in re.findall(r"^COPY (?!--from)(.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source


def test_mounted_files_are_there(services: dict[str, Any]) -> None:
    mounts = [mount for service in services.values() for mount in service["volumes"] if mount.startswith("./")]
    assert mounts
    for mount in mounts:
        assert (COMPOSE.parent / mount.split(":")[0]).is_file(), mount


def test_prometheus_scrapes_the_service(services: dict[str, Any]) -> None:
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    targets = [t for job in config["scrape_configs"] for static in job["static_configs"] for t in static["targets"]]
    assert f"service:{Settings.model_fields['admin_port'].default}" in targets
    assert services["service"]["environment"]["FARM_ADMIN_HOST"] == "0.0.0.0"
    assert not [port for port in services["service"]["ports"] if "8081" in port]
