"""uvicorn's HTTP protocol with limits on what a client may send before an application is asked, and on how slowly.

Of uvicorn's methods these are overridden: `connection_made`, `connection_lost`, `on_message_begin`, `on_url`,
`on_headers_complete`, `_start_asgi_task`, `on_message_complete`, `pause_writing`, `resume_writing`; and, without
calling uvicorn's, `data_received` (nothing is upgraded to a WebSocket, malformed requests are counted rather than
logged) and `on_response_complete` (no timer for each idle connection: the guard has one for all).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import httptools
from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from service.doors.errors import (
    HeadersTooLargeError,
    MalformedRequestError,
    SlowRequestError,
    TargetTooLongError,
    TooManyConnectionsError,
)
from service.doors.guard import Guard, Waiting
from service.doors.limits import Limits
from service.doors.metrics import count_refused_connection
from service.doors.refusal import refusal
from service.errors import ServiceError

_READ_ON = 1 << 20  # bytes of a declared body that is read on when it is answered, so that the connection can go on
_CROWD = 64  # connections beyond the limit that are told so at one time; others are only closed


class GuardedProtocol(HttpToolsProtocol):
    """Of one connection; `guarded` makes those of a worker."""

    def __init__(
        self,
        guard: Guard,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.guard = guard
        self._reading: Waiting | None = guard.new  # what is to come from the client; None: nothing but the next
        self._queue: Waiting | None = None  # where this connection is: `_reading`, but for answers that nobody reads
        self._chunk = 0  # bytes of the data that is parsed
        self._fed = 0  # bytes since the data in which this request began
        self._deaf = False  # what still comes is not parsed
        self._error: ServiceError | None = None  # why parsing ended

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self.guard.arm(self.loop)
        if not self._crowded() or self._take_place():
            self._enter(self.guard.new)

    def connection_lost(self, exc: Exception | None) -> None:
        self._enter(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._chunk = len(data)
        self._fed += self._chunk
        rest = memoryview(data)
        try:
            while rest and not self._deaf:
                rest = self._parse(rest)
        except httptools.HttpParserError:
            self.refuse(self._error or MalformedRequestError("what came is not HTTP/1.1"))
        if self._reading is self.guard.heads and self._fed > self.guard.limits.head_bytes and not self._deaf:
            self.refuse(self._too_large())
        elif self._queue is not self._reading and not self.flow.write_paused:
            self._enter(self._reading)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._fed = 0
        self._reading = self.guard.heads
        if self._queue in (self.guard.heads, self.guard.bodies):
            self._enter(None)  # the time of an earlier request does not count

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        limit = self.guard.limits.target_bytes
        if len(self.url) > limit:
            self._stop(TargetTooLongError(f"path and query are over {limit} bytes"))

    def on_headers_complete(self) -> None:
        limits = self.guard.limits
        long = self._fed > 0 or self._chunk > limits.head_bytes  # perhaps: a head that began in an earlier chunk may be
        if len(self.headers) > limits.headers or (long and _size(self.headers) > limits.head_bytes):
            self._stop(self._too_large())
        if self.parser.should_upgrade():
            return
        try:
            super().on_headers_complete()
        except (httptools.HttpParserError, AttributeError, UnicodeDecodeError):
            self._stop(MalformedRequestError("the target of the request is no path"))
        self._reading = self.guard.bodies

    def answers(self, cycle: RequestResponseCycle) -> None:
        """Its response begins: where the rest of its body will not be read, that is the connection's last."""
        if not cycle.more_body:
            return
        declared = next((value for name, value in cycle.scope["headers"] if name == b"content-length"), b"")
        if not declared.isdigit() or int(declared) > _READ_ON:
            cycle.keep_alive = False
            cycle.transport = cast(asyncio.Transport, _Last(self.transport, self._leave))

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        async def answered(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
            async def sending(message: ASGISendEvent) -> None:
                if message["type"] == "http.response.start":
                    self.answers(cycle)
                await send(message)

            await app(scope, receive, sending)

        super()._start_asgi_task(cycle, answered)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        super().on_message_complete()
        self._reading = self.guard.idle if self.cycle.response_complete else None

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._reading is None:
            self._reading = self.guard.idle
            self._enter(self.guard.answers if self.flow.write_paused else self._reading)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._enter(self.guard.answers)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._enter(self._reading)

    def expire(self) -> None:
        """The client has taken too long."""
        guard, queue = self.guard, self._queue
        if queue is guard.heads and not self._answering():
            self.refuse(SlowRequestError(f"the head of the request did not arrive within {queue.limit_s:g} s"))
        elif queue is guard.bodies and not self.flow.read_paused:
            self.refuse(SlowRequestError(f"the body did not arrive within {queue.limit_s:g} s"))
        elif queue is guard.heads or queue is guard.bodies:
            self._enter(queue)  # what we have not read, or must not answer yet, is not the client's delay
        else:
            self.give_way()

    def give_way(self) -> None:
        """Close without a word."""
        waiting = self._queue in (self.guard.new, self.guard.idle) and not self.transport.get_write_buffer_size()
        self._enter(None)
        if waiting:
            self.transport.close()
        else:
            self.transport.abort()

    def refuse(self, error: ServiceError) -> None:
        """Answer with `error`, once earlier requests are answered, and close."""
        count_refused_connection(error.type)
        if self._reading is self.guard.bodies:
            self._refuse_body(error)
        elif self._answering():
            self._deaf = True
            self.cycle.keep_alive = False
        else:
            self._leave(error)

    def _refuse_body(self, error: ServiceError) -> None:
        """Its request is the newest: the application waits for it, or is not asked yet."""
        if self.pipeline or self.cycle.response_started:
            self.give_way()
            return
        self.cycle.disconnected = True  # to the application
        self.cycle.message_event.set()
        self._leave(error)

    def _leave(self, error: ServiceError | None = None) -> None:
        """Say why, then leave the client time to read it: to close with data unread would take the answer from it."""
        self._deaf = True
        self._reading = self.guard.leaving
        self._enter(self._reading)
        self.flow.resume_reading()
        if error is not None:
            self.transport.write(refusal(error))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()

    def _crowded(self) -> bool:
        return len(self.connections) - len(self.guard.leaving.since) > self.guard.limits.connections

    def _take_place(self) -> bool:
        """Of another connection; when none can go this one is sent away."""
        waiter = self.guard.place(self.loop.time())
        if waiter is not None:
            waiter.give_way()
        elif len(self.guard.leaving.since) < _CROWD:
            self.refuse(TooManyConnectionsError("the service has as many connections as it takes"))
        else:
            self.give_way()
        return waiter is not None

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _parse(self, data: memoryview) -> memoryview:
        """What is left to be parsed: what follows a head that wished for another protocol."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade()
            return data[upgrade.args[0] :]
        return data[:0]

    def _ignore_upgrade(self) -> None:
        """Take the request without the wish for another protocol, which Java's client, for one, has by default."""
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        if method == b"CONNECT":
            self.refuse(MalformedRequestError("this is no proxy"))
            return
        self.parser = httptools.HttpRequestParser(self)
        kept = [(name, _without_upgrade(name, value)) for name, value in self.headers if name != b"upgrade"]
        lines = [b"%s %s HTTP/%s" % (method, self.url, version), *(b"%s: %s" % header for header in kept), b"", b""]
        self.parser.feed_data(b"\r\n".join(lines))

    def _stop(self, error: ServiceError) -> None:
        """Out of the parser."""
        self._error = error
        raise error

    def _too_large(self) -> HeadersTooLargeError:
        limits = self.guard.limits
        return HeadersTooLargeError(f"send at most {limits.headers} headers with {limits.head_bytes} bytes in all")

    def _enter(self, queue: Waiting | None) -> None:
        """Wait in this queue, from now on."""
        if self._queue is not None:
            del self._queue.since[self]
        self._queue = queue
        if queue is not None:
            queue.since[self] = self.loop.time()


class _Last:
    """What the last answer of a connection is written to, whose client still sends."""

    def __init__(self, transport: asyncio.Transport, leave: Callable[[], None]) -> None:
        self.write, self.is_closing, self.close = transport.write, transport.is_closing, leave


def guarded(limits: Limits) -> type[asyncio.Protocol]:
    """For uvicorn's `http`: makes the protocol of each connection, under one guard."""
    return cast(type[asyncio.Protocol], partial(GuardedProtocol, Guard(limits)))


def _without_upgrade(name: bytes, value: bytes) -> bytes:
    """A header's value; of `Connection` all but that word, so that `close` stays."""
    if name != b"connection":
        return value
    return b", ".join(word.strip() for word in value.split(b",") if word.strip().lower() != b"upgrade")


def _size(headers: list[tuple[bytes, bytes]]) -> int:
    return sum(len(name) + len(value) for name, value in headers)
