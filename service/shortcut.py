"""The shortest way to a route: past the framework, whose layers cost a ranking more than its JSON does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from service.body import JSON
from service.errors import ServiceError

Post = Callable[[Scope, Receive], Awaitable[bytes]]
OnError = Callable[[Request, Exception], Awaitable[Response]]

_JSON = (b"content-type", JSON.encode())


class Shortcut:
    """Around an application: a POST to `path` is answered with 200 and the JSON that `post` makes; all else is left to
    the application, which documents the path and answers other methods.

    on_error: makes a response of what `post` raises, as the application would.
    """

    def __init__(self, app: ASGIApp, path: str, post: Post, on_error: OnError) -> None:
        self._app, self._path, self._post, self._on_error = app, path, post, on_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != self._path or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        try:
            content = await self._post(scope, receive)
        except Exception as error:
            response = await self._on_error(Request(scope), error)
            await response(scope, receive, send)
            if not isinstance(error, (ServiceError, ClientDisconnect)):
                raise  # the server logs its traceback
            return
        headers = [(b"content-length", b"%d" % len(content)), _JSON]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})
