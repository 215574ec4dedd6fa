"""One HTTP/1.1 connection of the load generator: keep-alive, one request at a time."""

from __future__ import annotations

import asyncio
import contextlib
import select
import time
from collections.abc import Callable
from typing import NamedTuple, cast

import httptools

from loadtest.load.trace import NO_ANSWER

_RECONNECT_S = 0.05


class Exchange(NamedTuple):
    """A request and what became of it.  Times are of time.perf_counter."""

    body: int
    due: float  # when it was to be sent
    sent: float
    done: float
    status: int  # NO_ANSWER when the connection was lost
    answer: bytes | None  # when it was to be read
    kept: bool  # whether the answer is to be kept
    kind: int = -1  # number of what the answer says of itself, when it was read for that


class Client(asyncio.Protocol):
    """on_free is called whenever it can ask; on_done with every exchange."""

    def __init__(self, on_free: Callable[[Client], None], on_done: Callable[[Exchange], None]) -> None:
        self._on_free, self._on_done = on_free, on_done
        self._transport: asyncio.Transport | None = None
        self._asked: tuple[int, float, float, bool] | None = None  # body, due, sent, kept
        self._chunks: list[bytes] | None = None
        self._reconnecting: asyncio.Task[None] | None = None
        self._address: tuple[str, int] | None = None

    @property
    def idle(self) -> bool:
        """Connected, not waiting for an answer, and not closed by the server, which is looked at before each use."""
        return self._transport is not None and self._asked is None and not self._ended.poll(0)

    async def connect(self, host: str, port: int) -> None:
        """OSError when nobody listens."""
        self._address = host, port
        await asyncio.get_running_loop().create_connection(lambda: self, host, port)

    def ask(self, body: int, request: bytes, due: float, read: bool = False, keep: bool = False) -> None:
        """Send a request; the client is idle.  read: the answer is wanted, keep: for longer than a look at it."""
        assert self._transport is not None
        self._asked = body, due, time.perf_counter(), keep
        self._chunks = [] if read or keep else None
        self._transport.write(request)

    def close(self) -> None:
        """For good."""
        self._address = None
        if self._reconnecting is not None:
            self._reconnecting.cancel()
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._parser = httptools.HttpResponseParser(self)
        self._ended = select.poll()
        self._ended.register(self._transport.get_extra_info("socket").fileno(), select.POLLRDHUP)
        self._on_free(self)

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.abort()

    def on_body(self, chunk: bytes) -> None:
        """Of httptools."""
        if self._chunks is not None:
            self._chunks.append(chunk)

    def on_message_complete(self) -> None:
        """Of httptools."""
        assert self._transport is not None
        self._finish(self._parser.get_status_code())
        if self._parser.should_keep_alive():
            self._on_free(self)
        else:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._finish(NO_ANSWER)
        if self._address is not None:
            self._reconnecting = asyncio.ensure_future(self._reconnect(*self._address))

    def _finish(self, status: int) -> None:
        if self._asked is None:
            return
        answer = None if self._chunks is None else b"".join(self._chunks)
        (body, due, sent, kept), self._asked, self._chunks = self._asked, None, None
        self._on_done(Exchange(body, due, sent, time.perf_counter(), status, answer, kept))

    async def _reconnect(self, host: str, port: int) -> None:
        while True:
            with contextlib.suppress(OSError):
                return await self.connect(host, port)
            await asyncio.sleep(_RECONNECT_S)
