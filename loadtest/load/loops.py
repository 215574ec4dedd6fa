"""When the load generator asks: as soon as it is answered, or at times that do not depend on the answers."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from loadtest.load.client import Client, Exchange
from loadtest.load.trace import Kinds


def arrivals(rate: float, seconds: float, seed: int) -> np.ndarray:
    """Times of a Poisson process up to `seconds`, ascending [s]."""
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.exponential(1 / rate, int(rate * seconds + 10 * np.sqrt(rate * seconds)) + 20))
    return times[times < seconds]


class Sender:
    """Gives requests to clients, in order and from the start again, and collects what became of them."""

    def __init__(self, requests: Sequence[bytes], first: int, keep_every: int, kinds: Kinds | None = None) -> None:
        """kinds: of the answers, which are read when given."""
        self._requests, self._keep_every, self._kinds = requests, keep_every, kinds
        self._numbers = itertools.count(first)
        self.begun = 0
        self.exchanges: list[Exchange] = []

    def ask(self, client: Client, due: float) -> None:
        """The next request."""
        number = next(self._numbers)
        body = number % len(self._requests)
        self.begun += 1
        keep = self._keep_every > 0 and number % self._keep_every == 0
        client.ask(body, self._requests[body], due, self._kinds is not None, keep)

    def take(self, exchange: Exchange) -> None:
        """What became of a request."""
        if self._kinds is not None:
            kind = self._kinds.number(exchange.status, exchange.answer or b"")
            exchange = exchange._replace(kind=kind, answer=exchange.answer if exchange.kept else None)
        self.exchanges.append(exchange)

    def waiting(self) -> int:
        """Requests under way."""
        return self.begun - len(self.exchanges)


class ClosedLoop:
    """Every client asks again when it is answered."""

    def __init__(self, sender: Sender, clients: int) -> None:
        self._sender, self._going, self._free = sender, False, list[Client]()
        self.clients = [Client(self._on_free, sender.take) for _ in range(clients)]
        self.late: list[float] = []

    def start(self) -> None:
        """Every client is connected."""
        self._going = True
        for client in self._free:
            self._on_free(client)

    def stop(self) -> None:
        self._going = False

    def waiting(self) -> int:
        return self._sender.waiting()

    def _on_free(self, client: Client) -> None:
        if self._going:
            self._sender.ask(client, time.perf_counter())
        else:
            self._free.append(client)


class OpenLoop:
    """Requests at given times [s after the start], each by a free client, or by the next that becomes free.

    A request is due at its time however late it is sent, so that the wait for a client is part of its latency.
    """

    def __init__(self, sender: Sender, clients: int, times: np.ndarray) -> None:
        self._sender, self._times = sender, times.tolist()
        self._free: deque[Client] = deque()
        self._due: deque[float] = deque()
        self._stopped = threading.Event()
        self.clients = [Client(self._on_free, sender.take) for _ in range(clients)]
        self.late: list[float] = []  # [s] behind the time, of each arrival

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._pace, args=(loop.call_soon_threadsafe,), daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def waiting(self) -> int:
        return self._sender.waiting() + len(self._due)

    def _pace(self, call: Callable[[Callable[[float], None], float], object]) -> None:
        """In a thread of its own, because timers of event loops are whole milliseconds."""
        start = time.perf_counter()
        for after in self._times:
            pause = start + after - time.perf_counter()
            if pause > 0:
                time.sleep(pause)
            if self._stopped.is_set():
                return
            call(self._arrive, start + after)

    def _arrive(self, due: float) -> None:
        self.late.append(time.perf_counter() - due)
        while self._free:
            client = self._free.popleft()
            if client.idle:  # else it was cut off since, and comes again when it is back
                self._sender.ask(client, due)
                return
        self._due.append(due)

    def _on_free(self, client: Client) -> None:
        if self._due:
            self._sender.ask(client, self._due.popleft())
        else:
            self._free.append(client)
