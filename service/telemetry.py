"""Around every request: its id, its count, its time.  Plain ASGI, because this is paid by each request."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import REQUEST_ID_HEADER
from service.metrics import count_request

_HEADER = REQUEST_ID_HEADER.lower().encode()
_SANE_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")  # what may be copied into logs and headers


class Telemetry:
    """Middleware.  Requests of unknown paths are counted under one route, so that strangers cannot add series."""

    def __init__(self, app: ASGIApp, routes: Collection[str]) -> None:
        self._app, self._routes = app, frozenset(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500  # when the application raises, a 500 is sent around us
        request_id = request_id_of(scope)
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (_HEADER, request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            route = scope["path"] if scope["path"] in self._routes else "other"
            count_request(route, status, time.perf_counter() - start)


def request_id_of(scope: Scope) -> str:
    """The caller's, when it is sane; else a new one."""
    for name, value in scope["headers"]:
        if name == _HEADER and _SANE_ID.fullmatch(value):
            return str(value, "ascii")
    return os.urandom(16).hex()
