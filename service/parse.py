"""From the bytes of a request to arrays, or an error that names field and limit.

Letters: C candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

import numpy as np
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from feature_store.ids import IdKind, shown, to_id64
from feature_store.schema import MISSING
from service.contract import MAX_CANDIDATES, RULES, Candidate, RankRequest, Room, RoomsRequest
from service.errors import InvalidRequestError, MalformedBodyError

GivenId = int | str | None
Given = int | str | Candidate | Room

_ID_RULES = {"integer": "an integer or a decimal string of one", "string": "a string or an integer"}
_MAX_ERRORS = 100  # that are told one by one
_BRANCHES = ("int", "str", Candidate.__name__)  # pydantic's names for what a candidate or an id may be


@dataclass(frozen=True)
class Query:
    """A checked request."""

    user_id: int
    author_ids: np.ndarray  # [C] int64
    live_ids: np.ndarray  # [C] int64, MISSING where the request names none
    given_authors: list[GivenId]  # [C] as the request wrote them
    given_lives: list[GivenId]  # [C]
    page: int | None
    top_k: int | None
    now_ms: int | None
    debug: bool
    deadline_ms: int | None


def parse_query(body: bytes, ids: IdKind, max_candidates: int = MAX_CANDIDATES) -> Query:
    """MalformedBodyError when it is not JSON, InvalidRequestError when it is no request of the contract."""
    try:
        request = _validated(body)
    except ValidationError as error:
        raise _invalid(error, ids) from None
    if len(request.candidates) > max_candidates:
        raise InvalidRequestError(
            [("candidates", f"must be at most {max_candidates} candidates here, not {len(request.candidates)}")]
        )
    user_id = _column([request.user_id], ids, ["user_id"])[0]
    authors, lives, names = _columns(request.candidates)
    author_ids = _column(authors, ids, names[0])
    live_ids = _column(lives, ids, names[1])
    _refuse_repeated(author_ids, live_ids)
    given = (request.page, request.top_k, request.now_ms, bool(request.debug), request.deadline_ms)
    return Query(int(user_id), author_ids, live_ids, authors, lives, *given)


def _validated(body: bytes) -> RankRequest:
    """ValidationError.  Objects of integers are the most common, and half the time by a rule that allows no others."""
    if body.count(b"{") > 1:
        with suppress(ValidationError):  # the contract itself takes it, or says what is wrong
            return RoomsRequest.model_validate_json(body)
    return RankRequest.model_validate_json(body)


def _columns(candidates: Sequence[Given]) -> tuple[list[GivenId], list[GivenId], tuple[_Names, _Names]]:
    """The author and live ids of candidates, as given [C] each, and what the fields of both are called."""
    kinds = set(map(type, candidates))
    plain = kinds.isdisjoint((Candidate, dict))
    names = _Names(".author_id", candidates), _Names(".live_id", candidates)
    if plain:
        return cast(list[GivenId], candidates), [None] * len(candidates), names
    if kinds == {dict}:
        rooms = cast(list[Room], candidates)
        return [room["author_id"] for room in rooms], [room.get("live_id") for room in rooms], names
    objects = [c if type(c) is Candidate else Candidate.model_construct(author_id=c) for c in candidates]
    return [c.author_id for c in objects], [c.live_id for c in objects], names


class _Names:
    """Names of the fields of a column, made only when one is wrong."""

    def __init__(self, member: str, candidates: Sequence[Given]) -> None:
        self._member, self._candidates = member, candidates

    def __getitem__(self, row: int) -> str:
        return f"candidates[{row}]" + (self._member if isinstance(self._candidates[row], (Candidate, dict)) else "")


def _column(values: Sequence[GivenId], ids: IdKind, names: _Names | list[str]) -> np.ndarray:
    """[C] int64, null as MISSING; InvalidRequestError names the first that is no id."""
    kinds = set(map(type, values))
    if kinds == {type(None)}:
        return np.full(len(values), MISSING)
    if kinds == {int}:
        with suppress(OverflowError):  # the loop names it
            column = np.array(values, np.int64)
            if column.min() > MISSING:
                return column
    column = np.empty(len(values), np.int64)
    for row, value in enumerate(values):
        try:
            column[row] = MISSING if value is None else to_id64(value, ids)
        except ValueError as error:
            raise InvalidRequestError([(names[row], str(error))]) from None
    return column


def _refuse_repeated(author_ids: np.ndarray, live_ids: np.ndarray) -> None:
    if len(set(author_ids.tolist())) == len(author_ids):
        return
    pairs = list(zip(author_ids.tolist(), live_ids.tolist(), strict=True))
    first: dict[tuple[int, int], int] = {}
    for row, pair in enumerate(pairs):
        if first.setdefault(pair, row) != row:
            message = f"the same author_id and live_id as candidates[{first[pair]}]; each may be sent once"
            raise InvalidRequestError([(f"candidates[{row}]", message)])


def _invalid(error: ValidationError, ids: IdKind) -> MalformedBodyError | InvalidRequestError:
    if error.error_count() > _MAX_ERRORS:  # a megabyte of unknown fields is not worth many megabytes of errors
        known = ", ".join([*RankRequest.model_fields, *Candidate.model_fields])
        return InvalidRequestError([("body", f"{error.error_count()} fields are wrong; known are {known}")])
    details = error.errors(include_url=False, include_context=True)
    if details[0]["type"] == "json_invalid":
        return MalformedBodyError(details[0]["msg"].lower().replace("invalid json", "not JSON"))
    objects = {d["loc"][1] for d in details if d["loc"][2:3] == (Candidate.__name__,) and d["type"] != "model_type"}
    messages: dict[str, str] = {}
    for detail in details:
        loc = detail["loc"]
        if loc[:1] == ("candidates",) and loc[2:3] != (Candidate.__name__,) and loc[1:2] and loc[1] in objects:
            continue  # an object was meant: that it is no integer helps nobody
        messages.setdefault(_field(detail), _message(detail, ids))
    return InvalidRequestError(list(messages.items()))


def _field(detail: ErrorDetails) -> str:
    """("candidates", 3, "Candidate", "author_id", "int") -> candidates[3].author_id"""
    *path, last = detail["loc"] or ("body",)
    parts = [part for part in path if part not in _BRANCHES]
    if last not in _BRANCHES or detail["type"] == "extra_forbidden":
        parts.append(last)
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part[:80]}" for part in parts).removeprefix(".")


def _message(detail: ErrorDetails, ids: IdKind) -> str:
    kind, field = detail["type"], str((detail["loc"] or ("body",))[0])
    if kind == "missing":
        return "is required"
    if kind == "extra_forbidden":
        known = Candidate if Candidate.__name__ in detail["loc"] else RankRequest
        return f"unknown field; known are {', '.join(known.model_fields)}"
    if kind == "too_long":
        return f"must be at most {MAX_CANDIDATES} candidates, not {detail['ctx']['actual_length']}"
    if kind == "too_short":
        return f"must be 1 to {MAX_CANDIDATES} candidates, not 0"
    found = shown(detail["input"])
    if field == "user_id" or len(detail["loc"]) > 1:
        return f"an id must be {_ID_RULES[ids]}, not {found}"
    return f"must be {RULES.get(field, 'a JSON object')}, not {found}"
