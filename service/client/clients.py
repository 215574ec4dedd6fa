"""The two clients: each sends and sleeps in its way; what and when, Calls and Asker say."""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

import httpx

from service.client.asking import Asker, Attempt, Exchange, Flow, Outcome
from service.client.blocking import DeadlineTransport
from service.client.calls import Calls
from service.client.errors import RankError
from service.client.retry import RetryPolicy

P = ParamSpec("P")
T = TypeVar("T")
Transport = TypeVar("Transport")

_KEPT_S = 50.0  # idle connections; less than the 60 s of common load balancers and the service's 65 s


class _Client(ABC, Generic[Transport]):
    """What both share: how a client is made."""

    def __init__(
        self,
        url: str,
        timeout_s: float = 10.0,
        *,
        api_key: str | None = None,
        retries: int = 2,
        connections: int = 100,
        ssl_context: ssl.SSLContext | None = None,
        on_exchange: Callable[[Exchange], None] | None = None,
    ) -> None:
        """url: of the service, without a route.

        timeout_s: of a call without a deadline, its retries included.  api_key: default FARM_API_KEY of the
        environment.  retries: of a call, at most.  connections: at one time, at most.  ssl_context: of https, default
        the system's.  on_exchange: is told of each try.  RankError when one of them is wrong.
        """
        for name, value, least in (("retries", retries, 0), ("connections", connections, 1)):
            if value < least:
                raise RankError(f"{name}: must be at least {least}, not {value}")
        if not timeout_s > 0:
            raise RankError(f"timeout_s: must be more than 0, not {timeout_s}")
        asker = Asker(url, _headers(api_key), RetryPolicy(retries), on_exchange)
        self._calls = Calls(asker, timeout_s)
        limits = httpx.Limits(
            max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=_KEPT_S
        )
        self._transport = self._open(ssl_context or _ssl_context(asker.base.scheme), limits)

    @abstractmethod
    def _open(self, verify: ssl.SSLContext, limits: httpx.Limits) -> Transport:
        """httpx's connections."""


def _blocking(flow: Callable[Concatenate[Calls, P], Flow[T]]) -> Callable[Concatenate[RankClient, P], T]:
    @wraps(flow)
    def method(self: RankClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._run(flow(self._calls, *args, **kwargs))

    return method


def _awaited(
    flow: Callable[Concatenate[Calls, P], Flow[T]],
) -> Callable[Concatenate[AsyncRankClient, P], Coroutine[Any, Any, T]]:
    @wraps(flow)
    async def method(self: AsyncRankClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._run(flow(self._calls, *args, **kwargs))

    return method


class RankClient(_Client[httpx.HTTPTransport]):
    """Asks one service.  For any number of threads; each call under way has a connection of its own.

    Example::

        with RankClient("http://127.0.0.1:8080") as client:
            answer = client.rank(17, [301, 302])
    """

    rank = _blocking(Calls.rank)
    send_events = _blocking(Calls.send_events)
    version = _blocking(Calls.version)
    ready = _blocking(Calls.ready)

    def close(self) -> None:
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, verify: ssl.SSLContext, limits: httpx.Limits) -> httpx.HTTPTransport:
        return DeadlineTransport(verify, limits)

    def _run(self, flow: Flow[T]) -> T:
        outcome: Outcome = None
        try:
            while True:
                step = flow.send(outcome)
                if isinstance(step, Attempt):
                    outcome = self._send(step)
                else:
                    outcome = None
                    time.sleep(step.seconds)
        except StopIteration as done:
            answer: T = done.value
            return answer

    def _send(self, attempt: Attempt) -> Outcome:
        try:
            response = self._transport.handle_request(attempt.request)
            stream = response.stream
            assert isinstance(stream, httpx.SyncByteStream)
            try:
                for chunk in stream:
                    attempt.take(chunk)
            finally:
                stream.close()
        except httpx.TransportError as error:
            return error
        return response


class AsyncRankClient(_Client[httpx.AsyncHTTPTransport]):
    """Asks one service.  For any number of tasks of one event loop of asyncio.

    Example::

        async with AsyncRankClient("http://127.0.0.1:8080") as client:
            answer = await client.rank(17, [301, 302])
    """

    rank = _awaited(Calls.rank)
    send_events = _awaited(Calls.send_events)
    version = _awaited(Calls.version)
    ready = _awaited(Calls.ready)

    async def aclose(self) -> None:
        await self._transport.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _open(self, verify: ssl.SSLContext, limits: httpx.Limits) -> httpx.AsyncHTTPTransport:
        return httpx.AsyncHTTPTransport(verify=verify, limits=limits)

    async def _run(self, flow: Flow[T]) -> T:
        outcome: Outcome = None
        try:
            while True:
                step = flow.send(outcome)
                if isinstance(step, Attempt):
                    outcome = await self._send(step)
                else:
                    outcome = None
                    await asyncio.sleep(step.seconds)
        except StopIteration as done:
            answer: T = done.value
            return answer

    async def _send(self, attempt: Attempt) -> Outcome:
        try:
            async with asyncio.timeout(attempt.left_s()):
                response = await self._transport.handle_async_request(attempt.request)
                stream = response.stream
                assert isinstance(stream, httpx.AsyncByteStream)
                try:
                    async for chunk in stream:
                        attempt.take(chunk)
                finally:
                    await stream.aclose()
        except TimeoutError:
            return httpx.ReadTimeout("the answer is too slow")
        except httpx.TransportError as error:
            return error
        return response


def _headers(api_key: str | None) -> dict[str, str]:
    """Of every request.  RankError when the key cannot be sent."""
    key = os.environ.get("FARM_API_KEY", "") if api_key is None else api_key
    if not all("!" <= character <= "~" for character in key):
        raise RankError("api_key (FARM_API_KEY): must be ASCII without spaces and line ends")
    return {"authorization": f"Bearer {key}"} if key else {}


def _ssl_context(scheme: str) -> ssl.SSLContext:
    """Of the system's authorities, which take a while to read; with http none are asked."""
    return ssl.create_default_context() if scheme == "https" else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
