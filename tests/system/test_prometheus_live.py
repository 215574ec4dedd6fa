"""A real Prometheus scrapes a real service: no alert while all is well, the right ones in a fault; charts have data."""

from __future__ import annotations

import asyncio
import json
import math
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from debian_programs import ROOT
from prometheus_lab import PrometheusServer, running_prometheus

from loadtest.process import ServiceProcess, running_service
from loadtest.proxy import TcpProxy, tcp_proxy
from loadtest.redis_servers import free_port, valkey, wait_until
from model.datasets.prepared import Prepared
from model.materialize import materialize
from model.registry.pointer import Shadow
from model.registry.store import ArtifactStore

pytestmark = pytest.mark.debian

PATIENCE_S = 120.0
PAUSE_S = 0.03  # between requests of the load
USERS = 40  # that rank
CALM = 40  # evaluations of the rules, 20 s: ten minutes of the time that the rules were written for

NO_DATA = {
    "Alerts": "none is pending or fires while all is well",
    "Probability to that of a day ago": "the service is younger",
    "Last good records": "stand in only when the store fails",
    "Age of last good records": "stand in only when the store fails",
}


@dataclass(frozen=True)
class Watched:
    """A service under load, its store behind a proxy, its event worker, and who scrapes both."""

    service: ServiceProcess
    event_worker: subprocess.Popen[str]
    proxy: TcpProxy
    prometheus: PrometheusServer


@dataclass(frozen=True)
class Fault:
    """What is done to the deployment, which alerts it must make fire, and which it may."""

    name: str
    begin: Callable[[Watched], object]
    end: Callable[[Watched], object]
    alerts: frozenset[str]
    also: frozenset[str] = frozenset()


FAULTS = (
    Fault(
        "the store hangs",
        lambda watched: watched.proxy.stall(),
        lambda watched: watched.proxy.heal(),
        frozenset({"FarmStoreCircuitOpen", "FarmDegraded"}),
        frozenset({"FarmEventsRefused", "FarmEventsStuck", "FarmLatencyBurnFast", "FarmColdCache"}),
    ),
    Fault(
        "the event worker hangs",
        lambda watched: watched.event_worker.send_signal(signal.SIGSTOP),
        lambda watched: watched.event_worker.send_signal(signal.SIGCONT),
        frozenset({"FarmTargetDown", "FarmEventsStuck"}),
    ),
    Fault(
        "the service cannot be scraped",
        lambda watched: watched.service.process.send_signal(signal.SIGSTOP),
        lambda watched: watched.service.process.send_signal(signal.SIGCONT),
        frozenset({"FarmTargetDown", "FarmNoReadyWorker"}),
    ),
)


@pytest.fixture(scope="module")
def watched(artifact: Path, prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with ExitStack() as stack:
        server = stack.enter_context(valkey())
        asyncio.run(materialize(prepared, server.url))
        proxy = stack.enter_context(tcp_proxy(server.port))
        models = _models(artifact, tmp_path_factory.mktemp("models"))
        through = f"redis://127.0.0.1:{proxy.port}"
        service = stack.enter_context(running_service(artifact, through, "--workers", "2", FARM_MODELS=str(models)))
        worker, metrics = stack.enter_context(_event_worker(server.url))
        targets = {"farm": urlsplit(service.admin_url).netloc, "farm-events": metrics}
        prometheus = stack.enter_context(running_prometheus(tmp_path_factory.mktemp("prometheus"), targets))
        stack.enter_context(_load(service.url, prepared))
        yield Watched(service, worker, proxy, prometheus)


def _models(artifact: Path, folder: Path) -> Path:
    """A store whose model shadows itself."""
    store = ArtifactStore.open(folder)
    version = store.push(artifact)
    store.activate(version, shadow=Shadow(version=version, share=0.5))
    return folder


@contextmanager
def _event_worker(store: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`farm ingest --worker`, and where its metrics are."""
    port = free_port()
    command = [sys.executable, "-m", "farm", "ingest", "--worker", "--store", store, "--metrics-port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, text=True)
    try:
        yield process, f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


@contextmanager
def _load(url: str, prepared: Prepared) -> Iterator[None]:
    """Rankings by one client, events by another, until the end."""
    users = prepared.user_ids()[:USERS].tolist()
    authors = prepared.samples["author_id"][-20:].tolist()
    ended = threading.Event()
    rankings = ({"user_id": users[number % USERS], "candidates": sorted(set(authors))} for number in count())
    events = ({"events": [_view(users[number % USERS], authors[0], number)]} for number in count())
    senders = [
        threading.Thread(target=_send, args=(f"{url}/rank", rankings, PAUSE_S, ended)),
        threading.Thread(target=_send, args=(f"{url}/events", events, 10 * PAUSE_S, ended)),
    ]
    for sender in senders:
        sender.start()
    try:
        yield
    finally:
        ended.set()
        for sender in senders:
            sender.join(PATIENCE_S)


def _send(url: str, bodies: Iterator[dict[str, object]], pause_s: float, ended: threading.Event) -> None:
    with httpx.Client(timeout=PATIENCE_S, trust_env=False) as client:
        while not ended.wait(pause_s):
            client.post(url, json=next(bodies))


def _view(user: int, author: int, number: int) -> dict[str, object]:
    now = int(1000 * time.time())
    times = {"view_id": 2**40 + number, "event_time": now - 60_000, "known_at": now}
    return {"type": "live_view", "user_id": user, "author_id": author, **times}


def _wait_until_calm(prometheus: PrometheusServer) -> None:
    """Long enough for an alert that is pending to fire, and none does."""
    evaluated = f"count_over_time(job:farm_rank_requests:rate5m[1h]) >= {CALM}"
    wait_until(lambda: bool(prometheus.query(evaluated)), "the rules were evaluated for a while", PATIENCE_S)
    wait_until(lambda: not prometheus.alerts(), "no alert fires", PATIENCE_S)


def test_every_rule_is_evaluated_and_no_alert_fires(watched: Watched) -> None:
    _wait_until_calm(watched.prometheus)
    assert {(rule["health"], rule.get("lastError", "")) for rule in watched.prometheus.rules()} == {("ok", "")}
    fired = watched.prometheus.query('count_over_time(ALERTS{alertstate="firing"}[15s])')
    assert [series["metric"]["alertname"] for series in fired] == []


def test_every_query_of_the_dashboard_has_data(watched: Watched) -> None:
    _wait_until_calm(watched.prometheus)
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "dashboards" / "farm.json").read_text())
    queries = {(panel["title"], target["expr"]) for panel in dashboard["panels"] for target in panel.get("targets", ())}
    assert {title for title, _ in queries} > set(NO_DATA)
    missing, ends = queries, time.monotonic() + PATIENCE_S
    while not {title for title, _ in missing} <= set(NO_DATA) and time.monotonic() < ends:
        missing = {(title, query) for title, query in queries if not _has_data(watched.prometheus, query)}
        time.sleep(0.5)
    assert {title: query for title, query in missing if title not in NO_DATA} == {}


def _has_data(prometheus: PrometheusServer, query: str) -> bool:
    """A number at least, with what Grafana puts in."""
    asked = query.replace("$__rate_interval", "30s").replace("$instance", ".*")
    return any(not math.isnan(float(series["value"][1])) for series in prometheus.query(asked))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_a_fault_fires_the_right_alerts(watched: Watched, fault: Fault) -> None:
    _wait_until_calm(watched.prometheus)
    fault.begin(watched)
    try:
        wait_until(lambda: fault.alerts <= watched.prometheus.alerts(), f"{fault.alerts} fire", PATIENCE_S)
        assert watched.prometheus.alerts() <= fault.alerts | fault.also
    finally:
        fault.end(watched)
    wait_until(lambda: not fault.alerts & watched.prometheus.alerts(), f"{fault.alerts} end", PATIENCE_S)
