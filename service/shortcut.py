"""The shortest way to a route: past the router and its exit stacks, which cost a ranking more than its JSON does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import ServiceError

Post = Callable[[Scope, Receive], Awaitable[Response]]
OnError = Callable[[Request, Exception], Awaitable[Response]]


class Shortcut:
    """Middleware: a POST to `path` is answered by `post`; all else is left to the application, which documents the path
    and answers other methods.

    on_error: makes a response of a ServiceError and of a client that left, as the application would.
    """

    def __init__(self, app: ASGIApp, path: str, post: Post, on_error: OnError) -> None:
        self._app, self._path, self._post, self._on_error = app, path, post, on_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != self._path or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        try:
            response = await self._post(scope, receive)
        except (ServiceError, ClientDisconnect) as error:
            response = await self._on_error(Request(scope), error)
        await response(scope, receive, send)
