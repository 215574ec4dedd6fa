"""The way to real servers of every kind: what works, what is refused in one line, what comes back after a failover."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from links import ENCODED, SECRET, refused, use
from redis.crc import key_slot

from feature_store.redis.errors import ACL_RULES
from feature_store.redis.link import RedisLink, as_store_error
from feature_store.redis.settings import RedisSettings
from feature_store.store import StoreError
from loadtest.redis_servers import (
    Cluster,
    Server,
    TlsServer,
    Watched,
    cluster,
    tls_server,
    unix_server,
    valkey,
)


@pytest.fixture(scope="module")
def plain() -> Iterator[Server]:
    with valkey() as server:
        yield server


@pytest.fixture(scope="module")
def locked() -> Iterator[Server]:
    with valkey(password=SECRET) as server:
        yield server


@pytest.fixture(scope="module")
def with_tls() -> Iterator[TlsServer]:
    with tls_server(password=SECRET) as server:
        yield server


class TestReached:
    def test_plain_and_another_database(self, plain: Server) -> None:
        assert use(plain.url, RedisLink.check).startswith("Valkey 9")
        use(f"{plain.url}/3", lambda link: link.client.set("here", "3"))
        assert use(f"{plain.url}?db=3", lambda link: link.client.get("here")) == b"3"
        assert use(plain.url, lambda link: link.client.get("here")) is None

    def test_with_a_password_of_the_settings_or_of_the_url(self, locked: Server) -> None:
        assert use(locked.url, RedisLink.check, password=SECRET)
        assert use(f"redis://:{ENCODED}@{locked.address}", RedisLink.check, password="of another server")

    def test_through_a_socket(self) -> None:
        with unix_server() as (_, path):
            assert use(f"unix://{path}", RedisLink.check)
            assert use(f"redis+unix://{path}?db=1", RedisLink.check)

    def test_with_tls(self, with_tls: TlsServer) -> None:
        assert use(with_tls.url, RedisLink.check, password=SECRET, ca_file=with_tls.ca_file)

    def test_with_tls_and_a_client_certificate(self) -> None:
        with tls_server(ask_client=True) as server:
            files = {"cert_file": server.cert_file, "key_file": server.key_file}
            assert use(server.url, RedisLink.check, ca_file=server.ca_file, **files)
            assert "set FARM_REDIS_CERT_FILE and FARM_REDIS_KEY_FILE" in refused(server.url, ca_file=server.ca_file)

    def test_cluster_and_sentinel(self, nodes: Cluster, watched: Watched) -> None:
        assert use(nodes.url, RedisLink.check)
        assert use(watched.url, RedisLink.check)

    def test_a_user_with_the_permissions_that_the_message_names(self, locked: Server) -> None:
        with locked.client() as admin:
            admin.execute_command("ACL", "SETUSER", "farm", "reset", "on", f">{SECRET}", *ACL_RULES.split())

        async def act(link: RedisLink) -> None:
            library = (
                "#!lua name=acl\nredis.register_function('acl_get', function(k) return redis.call('GET', k[1]) end)"
            )
            client = link.client
            await link.check()
            await client.execute_command("FUNCTION", "LOAD", "REPLACE", library)
            await client.set("farm:x:k", 1, ex=9)
            assert await client.fcall("acl_get", 1, "farm:x:k") == b"1"
            await client.hset("farm:x:h", "a", 1)
            await client.hmget("farm:x:h", ["a"])
            entry = await client.xadd("farm:x:s", {"b": b""})
            await client.xgroup_create("farm:x:s", "merge", 0)
            assert await client.xreadgroup("merge", "me", {"farm:x:s": ">"})
            await client.xautoclaim("farm:x:s", "merge", "me", 0)
            await client.xack("farm:x:s", "merge", entry)
            await client.xinfo_groups("farm:x:s")
            await client.xtrim("farm:x:s", maxlen=0)
            assert await client.wait(0, 1) == 0
            assert await client.memory_usage("farm:x:h")
            await client.dbsize()
            assert [key async for key in client.scan_iter("farm:x:*")]
            await client.delete("farm:x:h", "farm:x:k", "farm:x:s")
            for forbidden in (("FLUSHALL",), ("CONFIG", "GET", "*"), ("GET", "other")):
                with pytest.raises(StoreError, match="lacks a permission"), link.errors():
                    await client.execute_command(*forbidden)

        use(f"redis://farm:{ENCODED}@{locked.address}", act)


class TestRefused:
    def test_passwords_and_users(self, plain: Server, locked: Server) -> None:
        assert "asks for a password; set FARM_REDIS_PASSWORD" in refused(locked.url)
        assert "wrong user name or password" in refused(locked.url, password="wrong")
        assert "wrong user name or password" in refused(f"redis://nobody:{ENCODED}@{locked.address}")
        assert "the server has none" in refused(plain.url, password=SECRET)

    def test_a_user_without_permission(self, locked: Server) -> None:
        with locked.client() as admin:
            admin.execute_command("ACL", "SETUSER", "weak", "reset", "on", f">{SECRET}", "+ping")
        line = refused(f"redis://weak:{ENCODED}@{locked.address}")
        assert "lacks a permission (User weak has no permissions to run the 'info' command)" in line
        assert f"ACL SETUSER <user> {ACL_RULES}" in line

    def test_addresses(self, plain: Server) -> None:
        assert "connection refused" in refused("redis://127.0.0.1:1")
        assert "127.0.0.1:2: connection refused" in refused("redis+cluster://127.0.0.1:2,127.0.0.1:2")
        assert "no sentinel answers; the last one: connection refused" in refused("redis+sentinel://127.0.0.1:1/m")
        assert "unknown host" in refused("redis://no-such-host.invalid")
        assert "there is no such socket" in refused("unix:///none/redis.sock")

    def test_tls_that_does_not_fit(self, plain: Server, with_tls: TlsServer) -> None:
        line = refused(with_tls.url, password=SECRET, ca_file=with_tls.other_ca_file)
        assert "certificate is not trusted" in line
        assert "set FARM_REDIS_CA_FILE" in line
        assert "certificate is not trusted" in refused(with_tls.url, password=SECRET)
        plainly = f"redis://127.0.0.1:{with_tls.port}"
        assert f"if the port speaks TLS, use rediss://127.0.0.1:{with_tls.port}" in refused(plainly, password=SECRET)
        line = refused(f"rediss://{plain.address}", timeout_s=0.3, connect_timeout_s=0.3, wait_ms=100)
        assert f"if the port does not speak TLS, use redis://{plain.address}" in line

    def test_files_of_tls(self, with_tls: TlsServer, tmp_path: Path) -> None:
        (tmp_path / "empty").touch()
        assert "FARM_REDIS_CA_FILE holds no certificate" in refused(with_tls.url, ca_file=tmp_path / "empty")
        assert "must hold a certificate" in refused(
            with_tls.url, cert_file=with_tls.ca_file, key_file=with_tls.key_file
        )
        assert "redis is not TLS" in refused("redis://h", ca_file=with_tls.ca_file)

    def test_another_kind_of_server(self, plain: Server, nodes: Cluster, watched: Watched) -> None:
        assert "no node of a cluster; use redis://" in refused(f"redis+cluster://{plain.address}")
        assert "a node of a cluster; use redis+cluster://" in refused(nodes.nodes[0].url)
        assert "this is a sentinel; use redis+sentinel://" in refused(watched.sentinels[0].url)
        assert "the hosts are no sentinels" in refused(f"redis+sentinel://{plain.address}/{watched.name}")
        assert f"know no master 'other'; they know {watched.name}" in refused(watched.url.replace("/farm", "/other"))
        replica = next(server for server in watched.servers if server is not watched.master())
        assert "read-only replica; give the address of the master" in refused(replica.url)

    def test_an_evicting_server_unless_allowed(self) -> None:
        with valkey(["--maxmemory", "100mb", "--maxmemory-policy", "volatile-lru"]) as server:
            line = refused(server.url)
            assert "maxmemory-policy is volatile-lru: histories would vanish silently" in line
            assert "set it to noeviction, or FARM_REDIS_ALLOW_EVICTION=true" in line
            assert use(server.url, RedisLink.check, allow_eviction=True)

    def test_a_cluster_with_slots_that_nobody_serves(self) -> None:
        async def act(link: RedisLink) -> None:
            with pytest.raises(StoreError, match="slots have no master"), link.errors():
                await link.client.get("farm:unserved")
            unserved, served = (
                await link.pipeline().get("farm:unserved").get("farm:served").execute(raise_on_error=False)
            )
            assert isinstance(unserved, Exception)
            assert served is None

        with cluster(masters=2, replicas=0, extra_args=["--cluster-require-full-coverage", "no"]) as made:
            slot = key_slot(b"farm:unserved")
            for node in made.nodes:
                with node.client() as admin:
                    admin.execute_command("CLUSTER DELSLOTS", slot)
            for node in made.nodes:
                line = refused(f"redis+cluster://{node.address}")
                assert "the cluster is not complete: 16383 of 16384 slots have a master" in line
            use(made.url, act)

    def test_a_server_that_is_too_old(self) -> None:
        """No such server is at hand: this one only says that it is."""

        async def run() -> str:
            async with _old_server() as port:
                link = RedisLink.open(f"redis://127.0.0.1:{port}", RedisSettings())
                with pytest.raises(StoreError) as raised:
                    await link.check()
                await link.aclose()
                return str(raised.value)

        assert "Redis 6.2.14 is too old; FARM needs Redis 7.0 or Valkey 7.2" in asyncio.run(run())


def test_an_error_in_a_pipeline_shows_no_data(plain: Server) -> None:
    async def act(link: RedisLink) -> None:
        await link.pipeline().set("name-of-a-user", "x").hget("name-of-a-user", "f").execute()

    with pytest.raises(Exception, match="WRONGTYPE") as raised:
        use(plain.url, act)
    line = str(as_store_error(raised.value, "redis://h"))
    assert line.startswith("store redis://h: the server refused (WRONGTYPE Operation against a key")
    assert "name-of-a-user" not in line


def test_no_secret_is_shown_or_logged(locked: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def act(link: RedisLink) -> str:
        await link.check()
        pool = link.client.connection_pool
        connection = await pool.get_connection()
        shown = f"{link!r} {link.client!r} {pool!r} {pool.connection_kwargs!r} {connection!r} {link.settings!r}"
        await pool.release(connection)
        return shown

    for url, settings in ((locked.url, {"password": SECRET}), (f"redis://:{ENCODED}@{locked.address}", {})):
        shown = use(url, act, **settings) + caplog.text
        assert locked.address in shown
        assert SECRET not in shown
        assert ENCODED not in shown


class TestConnections:
    def test_one_link_serves_one_event_loop_after_another(
        self, plain: Server, nodes: Cluster, watched: Watched
    ) -> None:
        for url in (plain.url, nodes.url, watched.url):
            link = RedisLink.open(url, RedisSettings())

            async def count(link: RedisLink = link) -> int:
                return int(await link.client.incr("farm:loops"))

            async def last(link: RedisLink = link) -> int:
                try:
                    return int(await link.client.incr("farm:loops"))
                finally:
                    await link.aclose()

            assert [asyncio.run(count()), asyncio.run(count()), asyncio.run(last())] == [1, 2, 3]

    def test_what_closed_loops_left_is_let_go(self) -> None:
        with valkey() as server, server.client() as admin:
            link = RedisLink.open(server.url, RedisSettings())

            async def ping() -> None:
                await link.client.ping()

            for _ in range(6):
                asyncio.run(ping())
            gc.collect()
            assert admin.info("clients")["connected_clients"] == 2  # the admin, and the last loop's
            asyncio.run(link.aclose())

    def test_commands_wait_for_a_connection(self, plain: Server, watched: Watched) -> None:
        async def act(link: RedisLink) -> list[int]:
            return list(await asyncio.gather(*(link.client.incr("farm:many") for _ in range(50))))

        for url in (plain.url, watched.url):
            assert sorted(use(url, act, max_connections=2)) == list(range(1, 51))

    def test_and_give_up_when_none_gets_free(self, plain: Server) -> None:
        async def act(link: RedisLink) -> None:
            pool = link.client.connection_pool
            held = await pool.get_connection()
            with pytest.raises(StoreError, match="raise FARM_REDIS_MAX_CONNECTIONS"), link.errors():
                await link.client.ping()
            await pool.release(held)
            assert await link.client.ping()

        use(plain.url, act, max_connections=1, timeout_s=0.2, wait_ms=100)

    @pytest.mark.parametrize("retries", [0, 2])
    def test_tries_do_not_multiply(self, plain: Server, retries: int) -> None:
        async def act(link: RedisLink) -> None:
            if link.settings.namespace == "connected":
                await link.client.ping()
            with plain.client() as admin:
                before = admin.info("stats")["total_connections_received"]
                admin.client_pause(1200)
            with pytest.raises(StoreError, match="no answer in time"), link.errors():
                await link.client.get("farm:any")
            with plain.client() as admin:  # answered when the pause is over
                made.append(admin.info("stats")["total_connections_received"] - before - 1)

        made: list[int] = []
        short = {"retries": retries, "timeout_s": 0.15, "wait_ms": 100}
        use(f"{plain.url}/1?namespace=connected", act, **short)
        use(f"{plain.url}/1", act, **short)
        assert made == [retries, 1]  # each further try connects anew; who was never connected is told at once

    def test_a_server_that_restarts(self) -> None:
        async def act(link: RedisLink) -> None:
            await link.client.ping()
            server.restart()
            assert await link.client.ping()

        with valkey() as server:
            use(server.url, act)

    def test_a_name_that_leads_to_another_master_by_now(self) -> None:
        """As managed services do: the old master becomes a replica, and its name leads to the new one."""

        async def run() -> bytes:
            async with _forwarded(old.port) as (port, target):
                link = RedisLink.open(f"redis://127.0.0.1:{port}", RedisSettings())
                await link.client.set("farm:k", "old")
                with old.client() as admin:
                    admin.replicaof("127.0.0.1", new.port)
                with pytest.raises(StoreError, match="read-only replica"), link.errors():
                    await link.client.set("farm:k", "refused")
                target[0] = new.port
                await link.client.set("farm:k", "new")
                found = await link.client.get("farm:k")
                await link.aclose()
                return bytes(found)

        with valkey() as old, valkey() as new:
            assert asyncio.run(run()) == b"new"


@asynccontextmanager
async def _old_server() -> Any:
    """A port at which something says that it is Redis 6.2.14."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (line := await reader.readline()).startswith(b"*"):
            words = [(await reader.readline(), await reader.readline())[1].strip() for _ in range(int(line[1:]))]
            info = b"# Server\r\nredis_version:6.2.14\r\nrole:master\r\n"
            writer.write(b"$%d\r\n%s\r\n" % (len(info), info) if words[0] == b"INFO" else b"+PONG\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@asynccontextmanager
async def _forwarded(port: int) -> Any:
    """A port that leads to another, and the list whose only item says where new connections go."""
    target, tasks = [port], set()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back_reader, back_writer = await asyncio.open_connection("127.0.0.1", target[0])
        tasks.add(asyncio.create_task(copy(back_reader, writer)))
        await copy(reader, back_writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], target
    finally:
        server.close()
