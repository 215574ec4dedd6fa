"""`deploy/docker-compose.yml`, really run by podman-compose: from nothing to a ranking that has read an event."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from debian_programs import ROOT, program, run
from images import built, debian, exit_code, healthy, logs, podman, podman_environment, until

pytestmark = pytest.mark.debian

COMPOSE = ROOT / "deploy" / "docker-compose.yml"
SERVICES = yaml.safe_load(COMPOSE.read_text())["services"]
READY_WITHIN_S, SEEN_WITHIN_S = 60, 30
USER, AUTHORS = 1, [100_001, 100_002, 100_003]
STARTED = ("demo-model", "valkey", "demo-store", "service", "event-worker", "prometheus")
PORTS = ("SERVICE_PORT", "PROMETHEUS_PORT")
STAND_INS = """
FROM {image} AS valkey
RUN ln -s redis-server /usr/bin/valkey-server && ln -s redis-cli /usr/bin/valkey-cli && install -d -o 999 -g 999 /data
FROM {image} AS prometheus
RUN install -d -o 65534 /prometheus
USER 65534
ENTRYPOINT ["prometheus"]
CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]
"""


@dataclass(frozen=True)
class Stack:
    """What runs: the command that compose is, containers by service, URLs by the port's variable."""

    compose: Callable[..., str]
    containers: dict[str, str]
    urls: dict[str, str]

    def rank(self) -> dict[str, Any]:
        """A ranking of a user of the demo, with how fresh what was read is."""
        asked = {"user_id": USER, "candidates": AUTHORS, "debug": True}
        answer = httpx.post(f"{self.urls['SERVICE_PORT']}/rank", json=asked)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def asked_of_prometheus(self, path: str) -> dict[str, Any]:
        answer = httpx.get(f"{self.urls['PROMETHEUS_PORT']}/api/v1/{path}").raise_for_status().json()
        found: dict[str, Any] = answer["data"]
        return found


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The stack but for Grafana, whose image cannot be had without a registry; with few users."""
    podman_compose = program("podman-compose", "the wheel podman-compose")
    folder = tmp_path_factory.mktemp("compose")
    images = {name: {"image": image} for name, image in _images(folder).items()}
    override = folder / "override.yml"
    override.write_text(yaml.safe_dump({"services": images}))
    project = f"farm{folder.parent.name.replace('-', '')}"
    ports = {name: _free_port() for name in PORTS}
    environment = podman_environment() | {name: str(port) for name, port in ports.items()}
    environment |= {"DEMO_USERS": "200", "FARM_WORKERS": "1", "FARM_REDIS_PASSWORD": "a password's test"}
    options = ("--project-name", project, "--file", COMPOSE, "--file", override)
    compose = partial(run, podman_compose, *options, environment=environment)
    containers = {name: f"{project}_{name}_1" for name in STARTED}
    try:
        for name in STARTED:
            _start(compose, name, containers[name])
        yield Stack(compose, containers, {name: f"http://127.0.0.1:{port}" for name, port in ports.items()})
    finally:
        compose("down", "--volumes", "--timeout", "0")


def _start(compose: Callable[..., str], service: str, name: str) -> None:
    """Start a service and wait as `depends_on` says.  Podman before 4.6 cannot: it knows no health, and starts a job
    once more for each container that depends on it."""
    started = time.monotonic()
    compose("up", "--detach", "--no-build", "--no-deps", service)
    if SERVICES[service]["restart"] == "no":
        podman("wait", name)
        assert exit_code(name) == 0, logs(name)
    else:
        until(lambda: healthy(name), READY_WITHIN_S, lambda: logs(name))
    print(f"{service}: {time.monotonic() - started:.0f} s")


def _images(folder: Path) -> dict[str, str]:
    """By service.  What cannot be pulled is made of Debian's packages, under the same names of programs."""
    file = folder / "Containerfile"
    file.write_text(STAND_INS.format(image=debian("stand-ins", ("redis-server", "prometheus"))))
    images = {"demo-model": built("train"), "demo-store": built("train")}
    images |= {"service": built("serve"), "event-worker": built("serve"), "load": built("load")}
    for target in ("valkey", "prometheus"):
        images[target] = f"localhost/farm-test-{target}"
        options = ("--isolation", "chroot", "--target", target, "--tag", images[target], "--file", file)
        run("buildah", "bud", *options, folder)
    return images


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_ranking_reads_the_loaded_store(stack: Stack) -> None:
    answer = stack.rank()
    assert sorted(row["author_id"] for row in answer["ranking"]) == AUTHORS
    assert answer["degraded"] == []
    assert answer["debug"]["user"]["known"]
    assert answer["debug"]["video"]["stored"] > 0


def test_an_event_is_merged_by_the_worker_and_seen_by_a_ranking(stack: Stack) -> None:
    before = stack.rank()["debug"]
    now = int(1000 * time.time())
    event = {"type": "video_view", "user_id": USER, "view_id": now, "event_time": now - 60_000, "known_at": now}
    sent = httpx.post(f"{stack.urls['SERVICE_PORT']}/events", json={"events": [{**event, "author_id": AUTHORS[0]}]})
    assert sent.status_code == 202, sent.text

    def seen() -> bool:
        after = stack.rank()["debug"]
        return after["user"]["version"] > before["user"]["version"] and after["video"]["newest_age_ms"] < 60_000

    until(seen, SEEN_WITHIN_S, lambda: json.dumps(stack.rank()["debug"]) + logs(stack.containers["event-worker"]))
    print(f"an event was seen by a ranking within {time.time() - now / 1000:.1f} s")


def test_a_second_load_keeps_the_event(stack: Stack) -> None:
    version = stack.rank()["debug"]["video"]["newest_age_ms"]
    podman("start", "--attach", stack.containers["demo-store"])
    assert exit_code(stack.containers["demo-store"]) == 0
    assert stack.rank()["debug"]["video"]["newest_age_ms"] < version + 1000 * READY_WITHIN_S


def test_prometheus_scrapes_both_and_has_the_rules(stack: Stack) -> None:
    def up() -> set[str]:
        targets = stack.asked_of_prometheus("targets?state=active")["activeTargets"]
        return {target["labels"]["job"] for target in targets if target["health"] == "up"}

    until(
        lambda: up() == {"farm", "farm-events"},
        READY_WITHIN_S,
        lambda: json.dumps(stack.asked_of_prometheus("targets")),
    )
    assert stack.asked_of_prometheus("rules")["groups"]


def test_load_finds_every_answer_right(stack: Stack) -> None:
    """The profile `load`, without its page; how fast the answers are is not asked of this machine."""
    lenient = {"MAX_P50_MS": 5000, "MAX_P95_MS": 5000, "MAX_P99_MS": 5000, "VISIBLE_MS": 20_000}
    settings = [word for name, value in lenient.items() for word in ("-e", f"FARM_LOAD_{name}={value}")]
    headless = ("--host", "http://service:8080", "--headless", "--users", "2", "--run-time", "5s", "--only-summary")
    print(stack.compose("--profile", "load", "run", "--rm", "--no-deps", *settings, "load", *headless))


def test_store_wants_its_password(stack: Stack) -> None:
    assert "NOAUTH" in podman("exec", "--env", "REDISCLI_AUTH=", stack.containers["valkey"], "valkey-cli", "ping")


def test_all_are_stopped_in_time(stack: Stack) -> None:
    for service in ("service", "event-worker"):
        podman("stop", "--time", "30", stack.containers[service])
        assert exit_code(stack.containers[service]) == 0, logs(stack.containers[service])
