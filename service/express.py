"""Rankings straight from the connection to the answer: past ASGI and the framework, whose layers cost a ranking more
than its JSON does.  What a client that has left asked for is dropped.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, cast

from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.flow_control import service_unavailable
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from service.body import JSON
from service.doors.guard import Guard
from service.doors.limits import Limits
from service.doors.protocol import GuardedProtocol
from service.errors import PROBLEM_JSON, REQUEST_ID_HEADER, ServiceError, problem_json, told_error
from service.metrics import count_answer, observe_request
from service.observe.trail import Trail, begin, end
from service.observe.w3c import TRACE_RESPONSE

Post = Callable[[Any, Any, str], Awaitable[bytes]]
"""Of a scope, its `receive` and the request's id makes the JSON of the answer."""

_LEFT = 499  # status of a request whose client did not wait, as metrics name it
_HEAD = f"content-length: %d\r\ncontent-type: %b\r\n{REQUEST_ID_HEADER.lower()}: %b\r\n".encode()
_TRACE = b"%b: %%b\r\n" % TRACE_RESPONSE
_CLOSE = b"connection: close\r\n"

_log = logging.getLogger(__name__)


class ExpressProtocol(GuardedProtocol):
    """A POST to `path` is answered with 200 and the JSON that `post` makes; all else is the application's.

    What `post` raises is told as the application tells it.
    """

    def __init__(self, guard: Guard, path: str, post: Post, **options: Any) -> None:
        super().__init__(guard, **options)
        self._path, self._post = path, post
        self._under_way: asyncio.Task[None] | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        if self._under_way is not None:
            self._under_way.cancel()
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        scope = cycle.scope
        if scope["path"] != self._path or scope["method"] != "POST" or app is service_unavailable:
            super()._start_asgi_task(cycle, app)
            return
        task = self._under_way = self.loop.create_task(self._rank(cycle))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _rank(self, cycle: RequestResponseCycle) -> None:
        status, scope = _LEFT, cast(Any, cycle.scope)
        trail = begin(scope["headers"])
        scope["state"]["request_id"] = trail.request_id
        try:
            content = await self._post(scope, cycle.receive, trail.request_id)
            if self.flow.write_paused:
                await self.flow.drain()
        except Exception as error:
            self._under_way = None
            if not isinstance(error, (ServiceError, ClientDisconnect)):
                _log.error("request %s", trail.request_id, exc_info=error)
            problem = told_error(error, trail.request_id)
            status = int(problem.status)
            count_answer(self._path, status)
            self.answers(cycle)
            if self.flow.write_paused:
                await self.flow.drain()
            self._answer(cycle, trail, problem_json(problem, trail.request_id), problem)
        else:
            self._under_way, status = None, 200  # the answer may start the next request of the connection
            count_answer(self._path, status)
            self._answer(cycle, trail, content)
        finally:
            if status == _LEFT:
                count_answer(self._path, status)
            observe_request(self._path, end(trail, "POST", self._path, status))

    def _answer(
        self, cycle: RequestResponseCycle, trail: Trail, content: bytes, problem: ServiceError | None = None
    ) -> None:
        """In one write: refusals must cost little when there are many."""
        if cycle.disconnected:
            return
        defaults = self.server_state.default_headers
        status, kind = (200, JSON) if problem is None else (int(problem.status), PROBLEM_JSON)
        parts = [STATUS_LINE[status], *(b"%b: %b\r\n" % header for header in defaults)]
        parts.append(_HEAD % (len(content), kind.encode(), trail.request_id.encode()))
        if problem is not None:
            parts += [f"{name.lower()}: {value}\r\n".encode("latin-1") for name, value in problem.headers.items()]
        if trail.span is not None:
            parts.append(_TRACE % trail.span.header())
        cycle.keep_alive = cycle.keep_alive and (b"connection", b"close") not in defaults
        if not cycle.keep_alive and (b"connection", b"close") not in defaults:
            parts.append(_CLOSE)
        cycle.transport.write(b"".join([*parts, b"\r\n", content]))
        cycle.response_started = cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()


def express(limits: Limits, path: str, post: Post) -> type[asyncio.Protocol]:
    """For uvicorn's `http`: makes the protocol of each connection, under one guard."""
    return cast(type[asyncio.Protocol], partial(ExpressProtocol, Guard(limits), path, post))
