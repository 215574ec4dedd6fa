"""A client of the service: the standard library's HTTP, the contract's types."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from pydantic import ValidationError

from service.contract import EventsAnswer, RankAnswer


class RankError(ValueError):
    """The service refused, failed or was not reached; one line.  `problem` is its RFC 9457 answer, if it gave one."""

    def __init__(self, message: str, status: int | None = None, problem: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.status, self.problem = status, dict(problem or {})


class RankClient:
    """One kept connection to one service; not for several threads at once.

    Example::

        with RankClient("http://127.0.0.1:8080") as client:
            answer = client.rank(17, [301, 302])
    """

    def __init__(self, url: str, timeout_s: float = 10.0) -> None:
        """url: of the service, without a route.  RankError when it is none."""
        parts = urlsplit(url if "://" in url else f"http://{url}")
        kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
        try:
            self._connection = kinds[parts.scheme](parts.hostname or "", parts.port, timeout=timeout_s)
        except (KeyError, ValueError):
            raise RankError(f"{url}: no URL of a service, such as http://127.0.0.1:8080") from None
        self._url, self._path = url, parts.path.rstrip("/")

    def rank(
        self,
        user_id: int | str,
        candidates: Sequence[int | str | Mapping[str, int | str | None]],
        page: int | None = None,
        top_k: int | None = None,
        now_ms: int | None = None,
        debug: bool = False,
    ) -> RankAnswer:
        """Rank `candidates`, each an author id or {"author_id", "live_id"}.  RankError says what the service said."""
        request = {"user_id": user_id, "candidates": list(candidates), "page": page, "top_k": top_k, "now_ms": now_ms}
        extra = {"debug": True} if debug else {}  # a service of an older version refuses a field that it does not know
        status, content = self._exchange("POST", "/rank", json.dumps(request | extra).encode())
        if status != 200:
            raise self._refused(status, content)
        try:
            return RankAnswer.model_validate_json(content)
        except ValidationError:
            raise RankError(f"{self._url}: its answer is no ranking; is it the FARM service?", status) from None

    def send_events(self, events: Sequence[Mapping[str, Any]]) -> int:
        """Send 1 to 1,000 events (docs/api.md); how many were accepted: all.

        RankError when they were not; with status None, 500 or 503 the same events may be sent again.
        """
        status, content = self._exchange("POST", "/events", json.dumps({"events": list(events)}).encode())
        if status != 202:
            raise self._refused(status, content)
        try:
            return EventsAnswer.model_validate_json(content).accepted
        except ValidationError:
            raise RankError(f"{self._url}: its answer is none to events; is it the FARM service?", status) from None

    def ready(self) -> bool:
        """Whether the service is there and takes traffic."""
        try:
            return self._exchange("GET", "/readyz")[0] == 200
        except RankError:
            return False

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _exchange(self, method: str, route: str, body: bytes | None = None) -> tuple[int, bytes]:
        headers = {} if body is None else {"Content-Type": "application/json"}
        try:
            self._connection.request(method, self._path + route, body, headers)
            response = self._connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()  # so that the next call starts with a new connection
            raise RankError(f"{self._url}: {error or type(error).__name__}") from error

    def _refused(self, status: int, content: bytes) -> RankError:
        try:
            problem = json.loads(content)
            return RankError(f"{self._url}: {status} {problem['title']}: {problem['detail']}", status, problem)
        except (ValueError, KeyError, TypeError):
            return RankError(f"{self._url}: {status}", status)
