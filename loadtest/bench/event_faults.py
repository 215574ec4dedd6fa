"""The scenarios of `farm bench events`: what runs, and what is done to it while events come in."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from feature_store.events.log import GROUP
from loadtest.bench.event_processes import Worker
from loadtest.proxy import TcpProxy, tcp_proxy
from loadtest.redis_servers import Cluster, Server, cluster, valkey, wait_until

CLAIM_IDLE_MS = 1_000  # in place of 30 s
_LOG_KEY = "farm:default:log:{}".format
_PARTITIONS = 8
_REPLICATED = {"FARM_REDIS_DURABILITY": "replica"}
_ROOM_BYTES = 100_000  # that the server may still take when its memory is limited; traffic fills it in half a second
_FAILOVER_S = 20.0
_MID_BATCH_S = 20.0


@dataclass(frozen=True)
class Place:
    """Where events are stored."""

    url: str  # for the service, the workers and the sender
    direct_url: str  # for the bench, past the proxy
    server: Server | None = None
    nodes: Cluster | None = None
    proxy: TcpProxy | None = None


@dataclass(frozen=True)
class Stage:
    """What a fault happens to."""

    place: Place
    workers: Sequence[Worker]
    prepared: Path
    hold_s: float  # how long it lasts, when it is one that ends


Fault = Callable[[Stage], dict[str, Any]]
"""Does it, waits until it is over, returns what it has to tell."""


@dataclass(frozen=True)
class Scenario:
    """One fault under traffic."""

    name: str
    text: str
    opened: Callable[[], AbstractContextManager[Place]]
    fault: Fault
    workers: int = 1
    over_http: bool = False  # events go through POST /events, else to the log
    environment: Mapping[str, str] = field(default_factory=dict)  # of service, workers and sender
    loses_nothing: bool = True  # is claimed
    refuses: str | None = None  # a reason for which some requests must have been refused, or nothing was shown


def kill_worker(stage: Stage) -> dict[str, Any]:
    """Stop a worker again and again until it has entries in hand, then kill it."""
    victim, server = stage.workers[0], stage.place.server
    assert server is not None
    ends = time.monotonic() + _MID_BATCH_S
    while time.monotonic() < ends:
        victim.signal(signal.SIGSTOP)
        if pending := _in_hand(server, victim.name):
            victim.kill()
            return {"entries_in_hand": pending}
        victim.signal(signal.SIGCONT)
        time.sleep(0.003)
    raise TimeoutError("the worker never had entries in hand")


def kill_master(stage: Stage) -> dict[str, Any]:
    """Kill a master of the log, wait until its replica writes, then start it again, as a supervisor would."""
    nodes = stage.place.nodes
    assert nodes is not None
    victim = nodes.master_of(_LOG_KEY(0))
    start = time.monotonic()
    victim.kill()
    wait_until(lambda: nodes.master_of(_LOG_KEY(0)) is not victim, "a replica is master", _FAILOVER_S)
    failover_s = time.monotonic() - start
    victim.start()
    victim.wait()
    return {"failover_s": failover_s}


def stall_network(stage: Stage) -> dict[str, Any]:
    """Pass nothing on for a while."""
    proxy = stage.place.proxy
    assert proxy is not None
    proxy.stall()
    time.sleep(stage.hold_s)
    proxy.flow()
    return {"stalled_s": stage.hold_s}


def fill_memory(stage: Stage) -> dict[str, Any]:
    """Leave the server little memory for a while."""
    assert stage.place.server is not None
    with stage.place.server.client() as client:
        client.config_set("maxmemory", client.info("memory")["used_memory"] + _ROOM_BYTES)
        time.sleep(stage.hold_s)
        client.config_set("maxmemory", 0)
    return {"limited_s": stage.hold_s}


def load_generation(stage: Stage) -> dict[str, Any]:
    """`farm materialize` into a new generation."""
    options = ["--data", str(stage.prepared), "--store", stage.place.url]
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "farm", "materialize", *options], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"farm materialize: exit status {done.returncode}: {done.stderr.strip()}")
    return {"materialize_s": time.monotonic() - start, "said": done.stderr.splitlines()[-1:]}


@contextmanager
def _single() -> Iterator[Place]:
    with valkey() as server:
        yield Place(server.url, server.url, server)


@contextmanager
def _behind_proxy() -> Iterator[Place]:
    with valkey() as server, tcp_proxy(server.port) as proxy:
        yield Place(f"redis://127.0.0.1:{proxy.port}", server.url, server, proxy=proxy)


@contextmanager
def _cluster(*options: str) -> Iterator[Place]:
    with cluster(extra_args=options) as nodes:
        yield Place(nodes.url, nodes.url, nodes=nodes)


def _safe_cluster() -> AbstractContextManager[Place]:
    return _cluster("--appendonly", "yes", "--appendfsync", "everysec", "--min-replicas-to-write", "1")


SCENARIOS = (
    Scenario(
        "worker",
        "kill -9 of one of two workers with entries in hand",
        _single,
        kill_worker,
        workers=2,
        environment={"FARM_REDIS_CLAIM_IDLE_MS": str(CLAIM_IDLE_MS)},
    ),
    Scenario("master", "kill -9 of a cluster's master", _cluster, kill_master, loses_nothing=False),
    Scenario(
        "replica",
        "kill -9 of a cluster's master, durability replica, AOF",
        _safe_cluster,
        kill_master,
        environment=_REPLICATED,
    ),
    Scenario("stall", "a stalled network", _behind_proxy, stall_network, over_http=True),
    Scenario("memory", "maxmemory reached", _single, fill_memory, over_http=True, refuses="503 events-busy"),
    Scenario("materialize", "materialize into a new generation", _single, load_generation),
)


def _in_hand(server: Server, consumer: str) -> int:
    """Entries that were delivered to a consumer and not acknowledged."""
    with server.client() as client:
        groups = [client.xinfo_consumers(_LOG_KEY(number), GROUP) for number in range(_PARTITIONS)]
    return sum(int(row["pending"]) for rows in groups for row in rows if row["name"] == consumer)
