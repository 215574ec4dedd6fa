"""Around every request: its id, its count, its time, its trace.  Plain ASGI, because this is paid by each request."""

from __future__ import annotations

from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import REQUEST_ID_HEADER
from service.metrics import count_answer, observe_request
from service.observe.trail import Trail, begin, end
from service.observe.w3c import TRACE_RESPONSE

_HEADER = REQUEST_ID_HEADER.lower().encode()


class Telemetry:
    """Middleware.  Requests of unknown paths are counted under one route, so that strangers cannot add series."""

    def __init__(self, app: ASGIApp, routes: Collection[str]) -> None:
        self._app, self._routes = app, frozenset(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        route = scope["path"] if scope["path"] in self._routes else "other"
        trail, status = begin(scope["headers"]), 0  # 0: no answer has begun
        scope.setdefault("state", {})["request_id"] = trail.request_id

        async def send_with_ids(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                count_answer(route, status)
                message["headers"] = [*message.get("headers", ()), *_headers(trail)]
            await send(message)

        try:
            await self._app(scope, receive, send_with_ids)
        finally:
            if not status:
                status = 500  # the application has raised; it is sent around us
                count_answer(route, status)
            observe_request(route, end(trail, scope["method"], route, status))


def _headers(trail: Trail) -> list[tuple[bytes, bytes]]:
    """Of the answer."""
    own = [(_HEADER, trail.request_id.encode())]
    return own if trail.span is None else [*own, (TRACE_RESPONSE, trail.span.header())]
