"""The files of deploy/ and the Dockerfile name what there is, and the compose file gives away no more than it says."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from loadtest.redis_servers import valkey
from service.settings import Settings

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
SERVICES: dict[str, Any] = yaml.safe_load((DEPLOY / "docker-compose.yml").read_text())["services"]
EACH = pytest.mark.parametrize("name", sorted(SERVICES))
METRICS_PORT = "8082"  # of the event worker


def stages() -> list[str]:
    return re.findall(r"^FROM .* AS (\S+)$", DOCKERFILE, re.MULTILINE)


def mounts(name: str) -> list[str]:
    """Files and folders of this repository that a service mounts."""
    return [mount.split(":")[0] for mount in SERVICES[name].get("volumes", []) if mount.startswith("./")]


def test_build_targets_are_stages_of_the_dockerfile() -> None:
    targets = {service["build"]["target"] for service in SERVICES.values() if "build" in service}
    assert targets == {"train", "serve", "load"}
    assert targets | {"serve-gpu"} <= set(stages())


def test_serve_is_what_is_built_without_a_target() -> None:
    assert stages()[-1] == "serve"


def test_what_the_dockerfile_copies_is_there() -> None:
    for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source


def test_images_carry_the_version_of_the_code() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert set(re.findall(r'image\.version="(.*?)"', DOCKERFILE)) == {version}


def test_scripts_of_the_build_can_be_run() -> None:
    called = set(re.findall(r"/build/(\w+\.sh)", DOCKERFILE))
    assert called
    for script in called:
        assert (DEPLOY / "image" / script).stat().st_mode & 0o111, script


@EACH
def test_mounted_files_are_there(name: str) -> None:
    for mount in mounts(name):
        assert (DEPLOY / mount).exists(), mount


@EACH
def test_containers_may_do_little(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


@EACH
def test_ports_are_open_to_this_machine_only(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


@EACH
def test_what_comes_before_is_waited_for(name: str) -> None:
    """A job by its end, a server by its health check, which it must have."""
    for before, how in SERVICES[name].get("depends_on", {}).items():
        lasts = SERVICES[before]["restart"] != "no"
        assert how["condition"] == ("service_healthy" if lasts else "service_completed_successfully")
        assert not lasts or "healthcheck" in SERVICES[before]


@EACH
def test_images_are_of_one_version(name: str) -> None:
    image = SERVICES[name]["image"]
    assert "build" in SERVICES[name] or re.search(r":v?\d+\.\d+\.\d+$", image), image


def test_a_password_of_any_characters_is_what_valkey_reads(tmp_path: Path) -> None:
    """The file that the container writes before it starts the server."""
    password, file = r'a"b\c $d #e %s', tmp_path / "valkey.conf"
    (script,) = SERVICES["valkey"]["command"]
    writing = script.partition("exec ")[0].replace("$$", "$").replace("/tmp/valkey.conf", str(file))
    environment = {"PATH": os.environ["PATH"], "FARM_REDIS_PASSWORD": password}
    subprocess.run(["sh", "-ec", writing], env=environment, check=True)
    assert file.stat().st_mode & 0o077 == 0
    with valkey(["--include", str(file)]) as server:
        host, _, port = server.address.partition(":")
        with redis.Redis(host, int(port), password=password) as client:
            assert client.ping()
        with pytest.raises(redis.AuthenticationError), redis.Redis(host, int(port)) as client:
            client.ping()


def test_example_names_the_variables_of_the_compose_file() -> None:
    used = set(re.findall(r"\$\{(\w+)", (DEPLOY / "docker-compose.yml").read_text()))
    shown = set(re.findall(r"^(\w+)=", (DEPLOY / ".env.example").read_text(), re.MULTILINE))
    assert shown == used


def test_prometheus_scrapes_the_service_and_the_event_worker() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    service, events = config["scrape_configs"]
    admin_port = Settings.model_fields["admin_port"].default
    assert service["static_configs"] == [{"targets": [f"service:{admin_port}"]}]
    (found,) = events["dns_sd_configs"]
    assert (found["names"], found["type"], found["port"]) == (["event-worker"], "A", int(METRICS_PORT))
    assert SERVICES["service"]["environment"]["FARM_ADMIN_HOST"] == "0.0.0.0"
    assert SERVICES["event-worker"]["environment"]["FARM_METRICS_HOST"] == "0.0.0.0"
    assert SERVICES["event-worker"]["environment"]["FARM_METRICS_PORT"] == METRICS_PORT
    assert not [port for port in SERVICES["service"]["ports"] if port.endswith(f":{admin_port}")]
