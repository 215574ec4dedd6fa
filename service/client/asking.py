"""One call of the client without its input and output: what to send, when to send it again, what the answer means.

A call is a generator, as in httpx.Auth: it yields an Attempt and is sent its Outcome, the answer or httpx's error; it
yields a Wait and is sent None.  It returns what was asked for, or raises a RankError.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Generator, Mapping, Set
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Generic, Self, TypeVar

import httpx
import orjson
from pydantic import ValidationError

from service.client.errors import BusyError, DeadlineError, NoAnswerError, RankError
from service.client.retry import RetryBudget, RetryPolicy, retry_after_s

T = TypeVar("T")

_CONNECT_S = 1.0  # a host that is gone says nothing: leave time to ask another behind the same name
_NAMED_S = 0.005
_LEAST_TIMEOUT_S = 0.001  # 0 would mean not to wait at all
_LAST_PORT = 65_535
_KINDS: dict[int, type[RankError]] = {429: BusyError, 503: BusyError, 504: DeadlineError}
_BROKEN = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ConnectTimeout)


@dataclass(frozen=True)
class Exchange:
    """One try, for who counts them."""

    method: str
    route: str
    status: int | None  # None: no answer
    seconds: float  # until the answer was read, or given up
    bytes: int  # of the answer's body
    request_id: str
    tries: int  # 1 for the first
    error: str | None = None  # when there was no answer


@dataclass(frozen=True)
class Question(Generic[T]):
    """What a call asks."""

    method: str
    route: str
    read: Callable[[bytes], T]  # the body of an answer; ValidationError when it is none
    within_s: float  # over all tries
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)  # of the caller; names in lower case
    accepted: int = 200  # the status of an answer
    tells_deadline: bool = False  # to the service, as X-Deadline-Ms
    heeds_retry_after: bool = True  # False: the first answer counts, whatever it is
    repeat_on: Set[int] = frozenset()  # statuses that are a reason to ask again, without a Retry-After too


class Deadline:
    """When a call is over.  It stands for httpx's timeouts, of which each phase of an exchange gets its own."""

    def __init__(self, within_s: float, clock: Callable[[], float]) -> None:
        self._clock, self._ends = clock, clock() + within_s

    def left_s(self) -> float:
        return self._ends - self._clock()

    def get(self, phase: str, default: object = None) -> Within:
        """What httpcore asks for, when a phase (pool, connect, write, read) begins."""
        left_s = max(_LEAST_TIMEOUT_S, self.left_s())
        return Within(min(left_s, _CONNECT_S) if phase == "connect" else left_s, self)


class Within(float):
    """A timeout [s] that knows what is left of its deadline later."""

    __slots__ = ("_deadline",)

    def __new__(cls, seconds: float, deadline: Deadline) -> Self:
        return super().__new__(cls, seconds)

    def __init__(self, seconds: float, deadline: Deadline) -> None:
        self._deadline = deadline

    def left_s(self) -> float:
        return max(_LEAST_TIMEOUT_S, self._deadline.left_s())


class Attempt:
    """One request to send, and what has come of the answer's body."""

    def __init__(self, request: httpx.Request, deadline: Deadline) -> None:
        self.request, self._deadline = request, deadline
        self._chunks: list[bytes] = []

    def left_s(self) -> float:
        """Until it is given up; a little after its deadline, so that the phase that took so long is named."""
        return max(0.0, self._deadline.left_s()) + _NAMED_S

    def take(self, chunk: bytes) -> None:
        """A part of the body.  ReadTimeout when it comes too late."""
        if self._deadline.left_s() <= 0:
            raise httpx.ReadTimeout("the answer is too slow")
        self._chunks.append(chunk)

    def content(self) -> bytes:
        return b"".join(self._chunks)


@dataclass(frozen=True)
class Wait:
    """How long to do nothing."""

    seconds: float


Outcome = httpx.Response | httpx.TransportError | None
Flow = Generator[Attempt | Wait, Outcome, T]


class Asker:
    """Asks one service.  Calls may be under way in several threads: they share the retry budget only."""

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        policy: RetryPolicy,
        on_exchange: Callable[[Exchange], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """url: of the service, without a route.  headers: of every request.  RankError when the URL is none."""
        self.url, self.base = url, base_url(url)
        self._urls: dict[str, httpx.URL] = {}  # by route
        self._headers = {"host": self.base.netloc.decode(), **headers}
        self._policy, self._budget = policy, RetryBudget()
        self._on_exchange, self._clock, self._draw = on_exchange, clock, draw

    def ask(self, question: Question[T]) -> Flow[T]:
        """Ask until there is an answer, the deadline or the policy says no; RankError of the last try."""
        deadline = Deadline(question.within_s, self._clock)
        headers = {**self._headers, **question.headers, "content-length": str(len(question.body))}
        headers.setdefault("x-request-id", os.urandom(16).hex())
        self._budget.earn()
        for tries in count(1):
            try:
                return (yield from self._try(question, headers, deadline, tries))
            except RankError as error:
                left_s = deadline.left_s()
                wait_s = self._policy.wait_s(error, tries, left_s, self._draw(), question.repeat_on)
                answered = error.status is not None
                if wait_s is None or (answered and not question.heeds_retry_after) or not self._budget.spend():
                    raise
            yield Wait(wait_s)
        raise AssertionError("tries end with an answer or an error")

    def _try(self, question: Question[T], headers: dict[str, str], deadline: Deadline, tries: int) -> Flow[T]:
        attempt = Attempt(self._request(question, headers, deadline), deadline)
        story = _Story(self.url, question, headers["x-request-id"], tries)
        began = self._clock()
        response = yield attempt
        assert response is not None
        if isinstance(response, httpx.TransportError):
            self._tell(story, began, None, 0, _text(response))
            raise story.unanswered(response, deadline.left_s() <= 0) from response
        content = attempt.content()
        self._tell(story, began, response.status_code, len(content))
        if response.status_code != question.accepted:
            raise story.refused(response, content)
        try:
            return question.read(content)
        except ValidationError:
            raise story.unread(response.status_code) from None

    def _request(self, question: Question[Any], headers: dict[str, str], deadline: Deadline) -> httpx.Request:
        if question.tells_deadline:
            left_ms = min(1000 * deadline.left_s(), 1000 * question.within_s)
            headers["x-deadline-ms"] = str(max(1, round(left_ms)))
        url = self._urls.get(question.route) or self._url(question.route)
        body, extensions = httpx.ByteStream(question.body), {"timeout": deadline}
        try:
            return httpx.Request(question.method, url, headers=headers, stream=body, extensions=extensions)
        except UnicodeEncodeError:
            raise RankError(f"{self.url}: headers must be ASCII") from None

    def _url(self, route: str) -> httpx.URL:
        path = self.base.raw_path.rstrip(b"/") + route.encode()
        return self._urls.setdefault(route, self.base.copy_with(raw_path=path))

    def _tell(self, story: _Story, began: float, status: int | None, size: int, error: str | None = None) -> None:
        if self._on_exchange is not None:
            asked, seconds = story.question, self._clock() - began
            exchange = Exchange(asked.method, asked.route, status, seconds, size, story.request_id, story.tries, error)
            self._on_exchange(exchange)


@dataclass(frozen=True)
class _Story:
    """One try, as its error tells it."""

    url: str
    question: Question[Any]
    request_id: str
    tries: int

    def unanswered(self, error: httpx.TransportError, over: bool) -> RankError:
        """No answer, or not a whole one.  over: the deadline has passed."""
        if isinstance(error, _BROKEN) and not (over and isinstance(error, httpx.TimeoutException)):
            return self._error(NoAnswerError, _text(error))
        within_ms = f"within {1000 * self.question.within_s:.0f} ms"
        if isinstance(error, httpx.PoolTimeout):
            return self._error(DeadlineError, f"all connections of this client were in use, no answer {within_ms}")
        if isinstance(error, httpx.TimeoutException):
            return self._error(DeadlineError, f"no answer {within_ms}")
        return self._error(RankError, f"cannot be sent: {error}")

    def refused(self, response: httpx.Response, content: bytes) -> RankError:
        """An answer that says no."""
        status = response.status_code
        more: dict[str, Any] = {"retry_after_s": retry_after_s(response.headers.get("retry-after"), time.time())}
        try:
            problem = orjson.loads(content)
            text, more["problem"] = f"{status} {problem['title']}: {problem['detail']}", problem
        except (ValueError, KeyError, TypeError):
            text = f"{status} {response.reason_phrase}".rstrip()
        return self._error(_KINDS.get(status, RankError), text, status=status, **more)

    def unread(self, status: int) -> RankError:
        """An answer that is not of this service."""
        return self._error(RankError, "its answer cannot be read; is it the FARM service?", status=status)

    def _error(self, kind: type[RankError], text: str, **more: Any) -> RankError:
        tries = "" if self.tries == 1 else f"{self.tries} tries, "
        message = f"{self.url}: {text} ({tries}request {self.request_id})"
        return kind(message, request_id=self.request_id, tries=self.tries, **more)


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__


def base_url(url: str) -> httpx.URL:
    """Of a service, without a route.  RankError when it is none."""
    try:
        found = httpx.URL(url if "://" in url else f"http://{url}")
    except httpx.InvalidURL:
        found = httpx.URL()
    more = found.userinfo or found.query or found.fragment or (found.port or 0) > _LAST_PORT
    if found.scheme in ("http", "https") and found.host and not more:
        return found
    raise RankError(f"{url}: no URL of a service, such as http://127.0.0.1:8080")
