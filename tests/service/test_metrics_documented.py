"""docs/metrics.md against what the service and a worker of events really tell, both ways."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.request import urlopen

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from service_facts import make_empty_store

from loadtest.process import ServiceProcess, running_service
from loadtest.redis_servers import valkey
from model.registry.pointer import Shadow
from model.registry.store import ArtifactStore

Described = dict[str, tuple[str, frozenset[str]]]
"""Type and labels, by name."""

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"
ROW = re.compile(r"^\| `(?P<name>\w+)` \| (?P<type>\w+) \| (?P<labels>[\w, ]*)\| (?P<sources>[SE, ]+) \| .*\|$")
PATIENCE_S = 30.0


def documented(source: str) -> Described:
    """What the document says of `source`."""
    rows = [found for line in DOCUMENT.read_text().splitlines() if (found := ROW.match(line))]
    mine = [row for row in rows if source in row["sources"].split(", ")]
    assert len({row["name"] for row in mine}) == len(mine)
    return {row["name"]: (row["type"], frozenset(re.findall(r"\w+", row["labels"]))) for row in mine}


def served(text: str) -> Described:
    """What /metrics told, without the label that histograms make themselves."""
    found: Described = {}
    for family in text_string_to_metric_families(text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {frozenset(sample.labels) - {"le"} for sample in family.samples}
        assert len(labels) <= 1, f"{name} has series with other labels than others: {labels}"
        assert family.documentation, f"{name} has no help"
        if labels:
            found[name] = (family.type, labels.pop())
    return found


def test_every_row_of_the_table_is_read() -> None:
    rows = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| `")]
    assert [line for line in rows if not ROW.match(line)] == []


@pytest.fixture(scope="module")
def url(store_url: str) -> Iterator[str]:
    with valkey() as server:
        asyncio.run(make_empty_store(store_url, server.url))
        yield server.url


@contextmanager
def serving(artifact: Path, url: str, models: Path) -> Iterator[ServiceProcess]:
    """A service with all that has metrics: Redis, an artifact store, a shadow model of every ranking."""
    store = ArtifactStore.open(models)
    version = store.push(artifact)
    store.activate(version, shadow=Shadow(version=version, share=1.0))
    with running_service(artifact, url, FARM_MODELS=str(models)) as service:
        yield service


def test_the_service(artifact: Path, url: str, tmp_path: Path) -> None:
    with serving(artifact, url, tmp_path / "models") as service:
        body = {"user_id": 1, "candidates": [1, 2, 3]}
        event = {"type": "user", "user_id": 1, "updated_at": 1_651_708_700_000}
        answers = [
            httpx.post(f"{service.url}/rank", json=body, timeout=PATIENCE_S, trust_env=False),
            httpx.post(f"{service.url}/events", json={"events": [event]}, timeout=PATIENCE_S, trust_env=False),
        ]
        assert [answer.status_code for answer in answers] == [200, 202], answers[1].text
        told = wait_for(f"{service.admin_url}/metrics", documented("S"))
    assert told == documented("S")


def test_a_worker_of_events(url: str) -> None:
    command = [sys.executable, "-m", "farm", "ingest", "--store", url, "--worker", "--metrics-port", "0"]
    with ExitStack() as stack:
        process = stack.enter_context(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        stack.callback(process.terminate)
        assert process.stderr is not None
        address = re.search(r"http://\S+", process.stderr.readline())
        assert address is not None
        told = wait_for(address[0], documented("E"))
    assert told == documented("E")


def wait_for(address: str, expected: Described) -> Described:
    """What is told once it is as expected, or what it was after a while: some of it is counted after the answer."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        with urlopen(address, timeout=PATIENCE_S) as answer:
            told = served(answer.read().decode())
        if told == expected or time.monotonic() > deadline:
            return told
        time.sleep(0.05)
