"""A request for a ranking as it came: its body, who sent it, and what its headers ask for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from service.admission.admission import Priority
from service.contract import MAX_DEADLINE_MS, RULES
from service.doors.door import ANYBODY, Caller
from service.errors import InvalidRequestError

DEADLINE_HEADER, PRIORITY_HEADER = "X-Deadline-Ms", "X-Priority"

_DEADLINE, _PRIORITY = DEADLINE_HEADER.lower().encode(), PRIORITY_HEADER.lower().encode()
_PRIORITIES: dict[bytes, Priority] = {b"high": "high", b"low": "low"}


@dataclass(frozen=True, slots=True)
class Ask:
    """What a ranking is made of."""

    body: bytes
    request_id: str
    caller: Caller = ANYBODY
    deadline_ms: int | None = None  # since it came
    priority: Priority = "high"


def read_ask(body: bytes, request_id: str, caller: Caller, headers: Iterable[tuple[bytes, bytes]]) -> Ask:
    """headers: names in lower case.  InvalidRequestError names the header that is wrong."""
    deadline_ms: int | None = None
    priority: Priority = "high"
    for name, value in headers:
        if name == _DEADLINE:
            deadline_ms = _milliseconds(value)
        elif name == _PRIORITY:
            priority = _priority(value)
    return Ask(body, request_id, caller, deadline_ms, priority)


def _milliseconds(value: bytes) -> int:
    if not (value.isdigit() and len(value) < 10 and 1 <= int(value) <= MAX_DEADLINE_MS):
        raise InvalidRequestError([(DEADLINE_HEADER, f"must be {RULES['deadline_ms']}, not {_shown(value)}")])
    return int(value)


def _priority(value: bytes) -> Priority:
    found = _PRIORITIES.get(value.lower())
    if found is None:
        raise InvalidRequestError([(PRIORITY_HEADER, f"must be high or low, not {_shown(value)}")])
    return found


def _shown(value: bytes) -> str:
    return repr(value[:40].decode("latin-1"))
