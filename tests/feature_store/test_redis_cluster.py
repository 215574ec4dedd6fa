"""A cluster through FARM's link, and what comes back after a failover of it or of a master that sentinels watch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from links import use
from redis.asyncio import Redis

from feature_store.redis.link import RedisLink, as_store_error
from feature_store.store import StoreError
from loadtest.redis_servers import (
    Cluster,
    Watched,
)


class TestCluster:
    def test_primaries_hold_all_keys(self, nodes: Cluster) -> None:
        async def act(link: RedisLink) -> tuple[int, set[bytes]]:
            pipe = link.pipeline()
            for number in range(60):
                pipe.set(f"farm:p:{number}", number)
            await pipe.execute()
            assert await link.client.mget_nonatomic("farm:p:1", "farm:p:2", "farm:p:3") == [b"1", b"2", b"3"]
            servers = await link.primaries()
            return len(servers), {key for server in servers async for key in server.scan_iter("farm:p:*")}

        assert use(nodes.url, act) == (3, {b"farm:p:%d" % number for number in range(60)})

    def test_a_call_goes_to_the_writer_of_the_key_on_one_connection(self, nodes: Cluster) -> None:
        async def add(server: Redis) -> list[Any]:
            pipe = server.pipeline(transaction=False)
            pipe.execute_command("INCR", "farm:waited")
            pipe.execute_command("WAIT", 1, 500)
            return list(await pipe.execute())

        assert use(nodes.url, lambda link: link.call("farm:waited", add)) == [1, 1]

    def test_functions_and_groups_cost_one_trip(self, nodes: Cluster) -> None:
        library = "#!lua name=trip\nredis.register_function('trip', function(k) return k[1] end)"

        async def act(link: RedisLink) -> None:
            for server in await link.primaries():
                await server.function_load(library, replace=True)
            assert await link.client.fcall("trip", 1, "farm:{one}") == b"farm:{one}"
            pipe = link.pipeline()
            for number in range(10):
                pipe.fcall("trip", 1, f"farm:{number}")
            assert await pipe.execute() == [b"farm:%d" % number for number in range(10)]
            await link.client.xgroup_create("farm:log:1", "merge", mkstream=True)
            await link.client.xadd("farm:log:1", {"b": b"x"})
            ((_, entries),) = await link.client.xreadgroup("merge", "me", {"farm:log:1": ">"}, count=1, block=10)
            assert [fields for _, fields in entries] == [{b"b": b"x"}]
            for server in await link.primaries():
                assert "cmdstat_command|getkeys" not in await server.info("commandstats")

        use(nodes.url, act)


async def _write_until_it_works(write: Callable[[], Awaitable[object]]) -> int:
    """How many writes failed before one worked."""
    ends = time.monotonic() + 15
    failed = 0
    while True:
        try:
            await write()
        except StoreError:
            failed += 1
            assert time.monotonic() < ends, "the writes never came back"
            await asyncio.sleep(0.1)
        else:
            return failed


def test_writes_come_back_after_the_sentinels_name_another_master(watched: Watched) -> None:
    async def act(link: RedisLink) -> None:
        async def write() -> None:
            with link.errors():
                await link.client.incr("farm:failover")

        await write()
        old = watched.master()
        old.kill()
        assert await _write_until_it_works(write) > 0
        assert watched.master() is not old
        assert await link.check()
        with watched.master().client() as admin:
            assert int(admin.get("farm:failover")) == 2

    use(watched.url, act)


def test_writes_come_back_after_a_node_of_the_cluster_died_and_others_go_on(nodes: Cluster) -> None:
    keys = [f"farm:failover:{number}" for number in range(12)]
    old = nodes.nodes[0]  # of the first slots, which redis-py asks for everything that has no key
    lost = {key for key in keys if nodes.master_of(key) is old}
    assert 0 < len(lost) < len(keys)
    other = next(key for key in keys if key not in lost)

    async def act(link: RedisLink) -> None:
        async def write() -> None:
            pipe = link.pipeline()
            for key in keys:
                pipe.sadd(key, "x")
            results = dict(zip(keys, await pipe.execute(raise_on_error=False), strict=True))
            await link.client.smembers(other)  # of a living node: an error here is none of the failover
            failed = {key: result for key, result in results.items() if isinstance(result, Exception)}
            assert set(failed) in (set(), lost)
            for result in failed.values():
                raise as_store_error(result, link.where) from result

        await write()
        old.kill()
        assert await _write_until_it_works(write) > 0
        assert nodes.master_of(min(lost)) is not old
        with link.errors():
            assert [await link.client.smembers(key) for key in keys] == [{b"x"}] * 12
            assert await link.call(min(lost), lambda server: server.scard(min(lost))) == 1
        assert await link.check()

    use(nodes.url, act)
