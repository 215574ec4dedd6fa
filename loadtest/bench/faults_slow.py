"""Of `farm bench faults`: clients that send their requests a byte at a time, among normal ones."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any
from urllib.parse import urlsplit

from loadtest.bench.cores import pinned
from loadtest.bench.faults_lab import Ground, unanswered
from loadtest.load.figures import LoadResult
from model.figures import claim

LOAD = 0.4  # of saturation
ROUNDS = 3

_RATIO = 1.15
_BYTE_S = 0.5  # between bytes
_HEAD = b"POST /rank HTTP/1.1\r\nHost: slow\r\nContent-Type: application/json\r\n"
_BODY = b'{"user_id": 1, "candidates": [1, 2, 3]}'
_CONNECT_S = 10.0


class SlowClients:
    """Connections that send half a head, or a head and half a body, a byte at a time; and come again when cut off."""

    def __init__(self, url: str, count: int) -> None:
        parts = urlsplit(url)
        self._address, self._count = (parts.hostname or "127.0.0.1", parts.port or 80), count
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))
        self._connected, self._task = threading.Event(), None
        self.ends: Counter[str] = Counter()  # how connections were ended: a status, closed, reset, refused
        self.open = 0

    def __enter__(self) -> SlowClients:
        self._thread.start()
        self._connected.wait(_CONNECT_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    async def _run(self) -> None:
        self._stop = asyncio.Event()
        clients = [asyncio.create_task(self._client(number)) for number in range(self._count)]
        await self._stop.wait()
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)

    async def _client(self, number: int) -> None:
        while True:
            try:
                self.ends[await self._crawl(number)] += 1
            except ConnectionRefusedError:
                self.ends["refused"] += 1
            except ConnectionError:
                self.ends["reset"] += 1
            await asyncio.sleep(_BYTE_S)

    async def _crawl(self, number: int) -> str:
        """Until the server ends the connection; how it did."""
        reader, writer = await asyncio.open_connection(*self._address)
        self.open += 1
        if self.open >= self._count:
            self._connected.set()
        try:
            reading = asyncio.ensure_future(reader.read(100))
            for byte in _bytes(number):
                writer.write(byte)
                done, _ = await asyncio.wait([reading], timeout=_BYTE_S)
                if done:
                    return _told(reading.result())
            return _told(await reading)
        finally:
            self.open -= 1
            reading.cancel()
            with contextlib.suppress(ConnectionError):
                writer.close()


def _bytes(number: int) -> Iterator[bytes]:
    """Every other client is slow with its body only."""
    if number % 2:
        head, rest = _HEAD + b"Content-Length: %d\r\n\r\n" % len(_BODY), _BODY[:-1]
    else:
        head, rest = _HEAD[:20], _HEAD[20:] + b"X-Slow: " + b"a" * 10_000
    yield head
    yield from (rest[at : at + 1] for at in range(len(rest)))


def _told(answer: bytes) -> str:
    """The status of an answer; closed without one."""
    return answer.split(b" ")[1].decode() if answer.startswith(b"HTTP/1.1 ") else "closed"


def slowloris(ground: Ground) -> dict[str, Any]:
    """Normal load with the slow clients and without, in alternation."""
    service, sizes, bodies = ground.lab.service("lmdb"), ground.sizes, ground.bodies()
    url, rate = service.process.url, LOAD * ground.peak(service, "lmdb")
    alone, among, ends, held = list[LoadResult](), list[LoadResult](), Counter[str](), list[int]()
    for _ in range(ROUNDS):
        alone.append(ground.run(url, bodies, sizes.slow_s, rate))
        with _slow(ground, url) as clients:
            held.append(clients.open)
            among.append(ground.run(url, bodies, sizes.slow_s, rate))
            ends += clients.ends
    return {
        "rate": rate,
        "slow_clients": held,
        "ends": dict(ends),
        "alone": _figures(alone),
        "among": _figures(among),
        "p99_ratio": median(result.p99_ms for result in among) / median(result.p99_ms for result in alone),
    }


@contextmanager
def _slow(ground: Ground, url: str) -> Iterator[SlowClients]:
    with pinned({ground.lab.cores.others}), SlowClients(url, ground.sizes.slow_clients) as clients:
        yield clients


def _figures(results: list[LoadResult]) -> dict[str, Any]:
    return {
        "p50_ms": [result.p50_ms for result in results],
        "p99_ms": [result.p99_ms for result in results],
        "failed": sum(map(unanswered, results)),
    }


def slowloris_claims(found: dict[str, Any]) -> list[dict[str, Any]]:
    text = f"{max(found['slow_clients'])} slow connections: "
    return [
        claim(text + "p99 of normal clients / without", found["p99_ratio"], "<=", _RATIO),
        claim(text + "normal requests that failed", found["among"]["failed"], "<=", 0),
    ]
