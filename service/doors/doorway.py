"""The door in front of an ASGI application."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.doors.door import Door
from service.errors import ServiceError

OnError = Callable[[Request, Exception], Awaitable[Response]]


class Doorway:
    """Middleware: who may pass is the request's state `caller`, all others get a problem."""

    def __init__(self, app: ASGIApp, door: Door, on_error: OnError) -> None:
        """on_error: makes a response of a ServiceError, as the application would."""
        self._app, self._door, self._on_error = app, door, on_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                caller = self._door.check(scope["path"], scope["method"], scope["headers"])
            except ServiceError as error:
                response = await self._on_error(Request(scope), error)
                await response(scope, receive, send)
                return
            scope.setdefault("state", {})["caller"] = caller
        await self._app(scope, receive, send)
