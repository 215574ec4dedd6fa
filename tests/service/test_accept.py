"""Which worker takes a connection: several acceptors on one listening socket, in one loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from service.accept import CLOSED, Acceptor, Loads


class Worker:
    """Holds the connections it took until they are closed by the client."""

    def __init__(self, listener: socket.socket, loads: Loads, number: int) -> None:
        self.open: set[asyncio.BaseTransport] = set()
        self.acceptor = Acceptor(listener.dup(), lambda: Held(self.open), lambda: len(self.open), loads, number)


class Held(asyncio.Protocol):
    def __init__(self, among: set[asyncio.BaseTransport]) -> None:
        self._among = among

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._among.add(transport)

    def data_received(self, data: bytes) -> None:
        assert isinstance(self._transport, asyncio.Transport)
        self._transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._among.discard(self._transport)


@pytest.fixture
def listener() -> socket.socket:
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    return bound


def run(loads: Path, listener: socket.socket, check: Callable[[list[Worker]], Awaitable[None]], workers: int) -> None:
    async def main() -> None:
        shared = Loads.create(loads, workers)
        started = [Worker(listener, shared, number) for number in range(workers)]
        await check(started)
        for worker in started:
            await worker.acceptor.close()
            for transport in list(worker.open):
                transport.close()

    asyncio.run(main())


async def connect(listener: socket.socket) -> asyncio.StreamWriter:
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    writer.write(b"x")
    assert await reader.readexactly(1) == b"x"
    return writer


def test_the_one_with_the_fewest_takes_the_next(listener: socket.socket, tmp_path: Path) -> None:
    async def check(workers: list[Worker]) -> None:
        clients = [await connect(listener) for _ in range(9)]
        assert [len(worker.open) for worker in workers] == [3, 3, 3]
        for client in clients:
            client.close()
        while any(worker.open for worker in workers):
            await asyncio.sleep(0.01)
        together = await asyncio.gather(*(connect(listener) for _ in range(6)))
        assert [len(worker.open) for worker in workers] == [2, 2, 2]
        assert len(together) == 6

    run(tmp_path / "loads", listener, check, workers=3)


def test_a_connection_does_not_wait_for_a_worker_that_is_stuck(listener: socket.socket, tmp_path: Path) -> None:
    """The other one says that it has no connection, and takes none."""

    async def main() -> None:
        loads = Loads.create(tmp_path / "loads", 2)
        loads.set(1, 0)
        worker = Worker(listener, loads, 0)
        clients = [await connect(listener) for _ in range(3)]
        assert (len(worker.open), len(clients)) == (3, 3)
        await worker.acceptor.close()
        for client in clients:
            client.close()

    asyncio.run(main())


def test_what_waits_is_taken_before_the_end(listener: socket.socket, tmp_path: Path) -> None:
    async def main() -> None:
        loads = Loads.create(tmp_path / "loads", 2)
        worker = Worker(listener, loads, 0)
        waiting = [socket.create_connection(listener.getsockname(), 5) for _ in range(5)]
        closing = asyncio.create_task(worker.acceptor.close())
        listener.close()
        await closing
        assert len(worker.open) == 5
        assert loads.least() == CLOSED
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(waiting[0].getpeername(), 5)
        for transport in list(worker.open):
            transport.close()
        for client in waiting:
            client.close()

    asyncio.run(main())
