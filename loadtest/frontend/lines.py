"""Connections to the service: the project's client, one call at a time each, as many as are under way at once."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager

from gevent.lock import BoundedSemaphore

from service.client import Exchange, RankClient


class Line:
    """One client with one connection, and how its last exchange ended."""

    def __init__(self, url: str, timeout_s: float, context: ssl.SSLContext) -> None:
        """RankError when the URL is none."""
        self.done = 0.0  # time.perf_counter
        self.bytes = 0  # of the answer
        self.client = RankClient(
            url, timeout_s, retries=0, connections=1, ssl_context=context, on_exchange=self._exchanged
        )

    def _exchanged(self, exchange: Exchange) -> None:
        """Before the answer is parsed, which is not the service's time."""
        self.done, self.bytes = time.perf_counter(), exchange.bytes


class Lines:
    """Of one process."""

    def __init__(self, url: str, timeout_s: float, most: int) -> None:
        self._url, self._timeout_s = url, timeout_s
        self._context = ssl.create_default_context()  # once: it takes longer than many requests
        self._free = BoundedSemaphore(most)
        self._idle: list[Line] = []

    @contextmanager
    def line(self) -> Iterator[Line]:
        """An idle one, the one used last first; waits while all are in use."""
        with self._free:
            line = self._idle.pop() if self._idle else Line(self._url, self._timeout_s, self._context)
            try:
                yield line
            finally:
                self._idle.append(line)

    def open(self, count: int) -> None:
        """Connect so many in advance."""
        lines = [Line(self._url, self._timeout_s, self._context) for _ in range(count)]
        for line in lines:
            line.client.ready()
        self._idle += lines

    def close(self) -> None:
        for line in self._idle:
            line.client.close()
