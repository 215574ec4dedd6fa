"""The HTTP contract: what `POST /rank` and its neighbours read and answer; events are in service.event_contract.

Fields are only added; clients ignore those they do not know (docs/api.md).
"""

from __future__ import annotations

from typing import Annotated, NotRequired

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict  # pydantic refuses typing's before Python 3.12

from feature_store.schema import MISSING

MAX_CANDIDATES = 2_000
MAX_EXACT = 2**53  # greater integers lose digits in JSON readers that keep numbers as doubles
MAX_DEADLINE_MS = 60_000
LEAST_NOW_MS, GREATEST_NOW_MS = 946_684_800_000, 4_102_444_800_000  # 2000-01-01 and 2100-01-01; seconds fall outside

RULES = {
    "candidates": f"a list of 1 to {MAX_CANDIDATES} authors, each an id or an object {{author_id, live_id}}",
    "page": "an integer of 64 bits",
    "top_k": f"an integer from 1 to {MAX_CANDIDATES}",
    "now_ms": f"an integer, ms since 1970, from {LEAST_NOW_MS} (2000-01-01) to {GREATEST_NOW_MS} (2100-01-01)",
    "debug": "true or false",
    "deadline_ms": f"an integer, ms from when the request came, from 1 to {MAX_DEADLINE_MS}",
}
"""What a field of a request must be, for error messages and the OpenAPI document."""

Id = Annotated[int | str, Field(description="An integer, or a decimal string of one; with a store of string ids, text")]


class Candidate(BaseModel):
    """An author, and the live room that would be shown."""

    model_config = ConfigDict(extra="forbid", strict=True)

    author_id: Id
    live_id: Annotated[int | str | None, Field(description="null: the author's newest")] = None


class RankRequest(BaseModel):
    """A user and the authors to rank for them."""

    model_config = ConfigDict(extra="forbid", strict=True)

    user_id: Id
    # fail_fast: a megabyte of wrong ids is not worth a megabyte of errors
    candidates: Annotated[
        list[int | str | Candidate],
        Field(min_length=1, max_length=MAX_CANDIDATES, fail_fast=True, description=RULES["candidates"]),
    ]
    page: Annotated[int | None, Field(gt=MISSING, le=2**63 - 1, description="Where the ranking will be shown")] = None
    top_k: Annotated[
        int | None, Field(ge=1, le=MAX_CANDIDATES, description="Answer only the best; null: all, best first")
    ] = None
    now_ms: Annotated[
        int | None,
        Field(ge=LEAST_NOW_MS, le=GREATEST_NOW_MS, description="Time of the request, ms since 1970; null: the clock"),
    ] = None
    debug: Annotated[bool | None, Field(description="Answer what is stored of the user too")] = None
    deadline_ms: Annotated[
        int | None,
        Field(
            ge=1, le=MAX_DEADLINE_MS, description="Time to answer in; it shortens what the header or the default say"
        ),
    ] = None


class Room(TypedDict):
    """A Candidate whose ids are integers."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]  # pydantic reads it

    author_id: int
    live_id: NotRequired[int | None]


class RoomsRequest(RankRequest):
    """The RankRequests whose candidates are all objects with integer ids."""

    candidates: Annotated[list[Room], Field(min_length=1, max_length=MAX_CANDIDATES, fail_fast=True)]  # type: ignore[assignment]


class Ranked(BaseModel):
    """One author of the ranking."""

    author_id: int | str
    live_id: int | str | None = Field(description="The requested live room, else the author's newest; null: not known")
    score: float
    xtr: dict[str, float] = Field(description="Calibrated probability by task")


class Timing(BaseModel):
    """Where the time went, ms."""

    store: float
    queue: float
    user_tower: float
    candidate_tower: float
    total: float = Field(description="From when the body was read until the answer is serialised")


class UserDebug(BaseModel):
    """The stored record of the user."""

    known: bool = Field(description="Whether there is one that can be read")
    version: int = Field(description="Grows at each write of the user; 0 when not known")


class HistoryDebug(BaseModel):
    """One of the user's histories."""

    events: int = Field(description="Read by the model")
    stored: int = Field(description="In the store: those not known yet and those beyond the model's length too")
    newest_age_ms: int | None = Field(
        description="From when the newest stored outcome was known to the time of the request; null: no outcome known"
    )


class Debug(BaseModel):
    """How fresh what was read is."""

    user: UserDebug
    video: HistoryDebug
    live: HistoryDebug


class RankAnswer(BaseModel):
    """The ranking: sorted by score, the best first; equal scores in the order of the request."""

    request_id: str
    model_version: str
    arm: str | None = Field(None, description="control or split, while users are split between two models")
    ranking: list[Ranked]
    degraded: list[str] = Field(description="What was missing; empty for a full answer")
    timing_ms: Timing
    debug: Debug | None = Field(None, description="Only there when the request asks for it")


class EventsAnswer(BaseModel):
    """All events of the request are durable."""

    accepted: int = Field(description="How many events")
    request_id: str


class Status(BaseModel):
    """Answer of /livez and /readyz."""

    status: str


class RecordSchemaName(BaseModel):
    """Which records the store holds."""

    name: str
    version: int
    ids: str


class Version(BaseModel):
    """Answer of /version: what is really running."""

    service: str
    model_version: str
    arch: str
    tasks: list[str]
    provider: str = Field(description="The ONNX Runtime provider in use, asserted at start")
    formula_version: str
    calibration: str = Field(description="Hash of the calibration")
    record_schema: RecordSchemaName


class FieldError(BaseModel):
    """One field that is wrong."""

    field: str
    message: str


class Problem(BaseModel):
    """RFC 9457 problem details."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldError]
    request_id: str
