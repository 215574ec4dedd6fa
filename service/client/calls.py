"""What may be asked of the service: one description of each call, for both clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import orjson

from service.client.asking import Asker, Flow, Question
from service.client.errors import RankError
from service.contract import MAX_DEADLINE_MS, RULES, EventsAnswer, RankAnswer, Status, Version

_JSON = {"content-type": "application/json"}
_EVENTS_AGAIN = frozenset({500, 503})  # events that are sent twice change nothing (docs/api.md)


class Calls:
    """Flows of the calls."""

    def __init__(self, asker: Asker, timeout_s: float) -> None:
        """timeout_s: of a call that says no deadline."""
        self._asker, self._timeout_s = asker, timeout_s

    def rank(
        self,
        user_id: int | str,
        candidates: Sequence[int | str | Mapping[str, int | str | None]],
        page: int | None = None,
        top_k: int | None = None,
        now_ms: int | None = None,
        debug: bool = False,
        deadline_ms: int | None = None,
        priority: Literal["high", "low"] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Flow[RankAnswer]:
        """Rank `candidates`, each an author id or {"author_id", "live_id"}; docs/api.md has the other fields.

        deadline_ms: of the whole call with its retries; the service is told what is left of it.
        headers: of the caller, such as traceparent or X-Request-Id.
        RankError says what the service said.
        """
        request = {"user_id": user_id, "candidates": list(candidates), "page": page, "top_k": top_k, "now_ms": now_ms}
        asked = {name: value for name, value in request.items() if value is not None}
        if debug:  # a service of an older version refuses a field that it does not know
            asked["debug"] = True
        question = Question(
            "POST",
            "/rank",
            RankAnswer.model_validate_json,
            self._timeout_s if deadline_ms is None else self._deadline_s(deadline_ms),
            self._json(asked),
            _JSON | _lowered(headers) | ({} if priority is None else {"x-priority": priority}),
            tells_deadline=deadline_ms is not None,
        )
        return (yield from self._asker.ask(question))

    def send_events(self, events: Sequence[Mapping[str, Any]], headers: Mapping[str, str] | None = None) -> Flow[int]:
        """Send 1 to 1,000 events (docs/api.md); how many were accepted: all.

        RankError when they were not; with status None, 500 or 503 the same events may be sent again.
        """
        question = Question(
            "POST",
            "/events",
            EventsAnswer.model_validate_json,
            self._timeout_s,
            self._json({"events": list(events)}),
            _JSON | _lowered(headers),
            accepted=202,
            repeat_on=_EVENTS_AGAIN,
        )
        return (yield from self._asker.ask(question)).accepted

    def version(self, headers: Mapping[str, str] | None = None) -> Flow[Version]:
        """What is really running.  RankError says what the service said."""
        read = Version.model_validate_json
        question = Question("GET", "/version", read, self._timeout_s, headers=_lowered(headers))
        return (yield from self._asker.ask(question))

    def ready(self) -> Flow[bool]:
        """Whether the service is there and takes traffic.  Its first answer counts; without one it is asked again."""
        try:
            question = Question("GET", "/readyz", Status.model_validate_json, self._timeout_s, heeds_retry_after=False)
            yield from self._asker.ask(question)
        except RankError:
            return False
        return True

    def _deadline_s(self, deadline_ms: int) -> float:
        if not 1 <= deadline_ms <= MAX_DEADLINE_MS:
            raise RankError(f"deadline_ms: must be {RULES['deadline_ms']}, not {deadline_ms}")
        return deadline_ms / 1000

    def _json(self, asked: dict[str, Any]) -> bytes:
        try:
            return orjson.dumps(asked, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY)
        except TypeError as error:
            raise RankError(f"the request cannot be sent as JSON: {error}") from None


def _plain(value: object) -> object:
    """What orjson does not know, as what it knows."""
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError


def _lowered(headers: Mapping[str, str] | None) -> dict[str, str]:
    return {name.lower(): value for name, value in (headers or {}).items()}
