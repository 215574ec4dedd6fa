"""The OpenAPI document: what FastAPI finds, the bodies that it does not parse, and examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from feature_store.schema import RecordSchema
from service.contract import Candidate, EventsAnswer, Problem, RankAnswer, RankRequest
from service.doors.errors import (
    ForbiddenError,
    HeadersTooLargeError,
    SlowRequestError,
    TargetTooLongError,
    TooManyConnectionsError,
    UnauthorizedError,
)
from service.errors import (
    PROBLEM_JSON,
    BodyTooLargeError,
    DeadlineExceededError,
    EngineUnavailableError,
    EventsBusyError,
    ForbiddenStepError,
    InvalidRequestError,
    KeyBusyError,
    MalformedBodyError,
    NotDurableError,
    NotReadyError,
    OverloadedError,
    ServiceError,
    StoreUnavailableError,
    UnavailableError,
    UnsupportedMediaTypeError,
)
from service.event_contract import EVENTS_REQUEST, event_examples, event_schemas

_SCHEMAS = "#/components/schemas/{model}"

_REQUESTS: dict[str, Any] = {
    "ids": {"summary": "Author ids", "value": {"user_id": 17, "candidates": [301, 302, "9007199254740993"]}},
    "live_rooms": {
        "summary": "Live rooms, the page, the best ten",
        "value": {
            "user_id": "17",
            "candidates": [{"author_id": 301, "live_id": 88001}, {"author_id": 302}],
            "page": 2,
            "top_k": 10,
        },
    },
    "replay": {
        "summary": "A moment of the past, and what is stored of the user",
        "value": {"user_id": 17, "candidates": [301], "now_ms": 1_651_708_800_000, "debug": True},
    },
}
_ANSWER: dict[str, Any] = {
    "request_id": "5f0c8f7d3c5e4b5c9a3a7a1f0e6d2b10",
    "model_version": "20260105T093000Z-1f6c02ab",
    "ranking": [
        {"author_id": 302, "live_id": 88002, "score": 0.7315, "xtr": {"ctr": 0.41, "etr": 0.33, "ltr": 0.052}},
        {"author_id": 301, "live_id": 88001, "score": 0.2986, "xtr": {"ctr": 0.21, "etr": 0.09, "ltr": 0.011}},
    ],
    "degraded": ["unknown_authors"],
    "timing_ms": {"store": 0.11, "queue": 0.05, "user_tower": 0.42, "candidate_tower": 1.87, "total": 2.61},
}
_PROBLEMS: dict[type[ServiceError], tuple[str, list[dict[str, str]]]] = {
    MalformedBodyError: ("not JSON: eof while parsing an object at line 1 column 12", []),
    BodyTooLargeError: (
        "the body is over 1048576 bytes",
        [{"field": "body", "message": "must be at most 1048576 bytes"}],
    ),
    UnsupportedMediaTypeError: (
        "the Content-Type is 'text/plain'; send application/json in UTF-8",
        [{"field": "Content-Type", "message": "must be application/json"}],
    ),
    InvalidRequestError: (
        "candidates: must be at most 2000 candidates, not 2001",
        [{"field": "candidates", "message": "must be at most 2000 candidates, not 2001"}],
    ),
    NotReadyError: ("the service is being stopped", []),
    EventsBusyError: ("the log of events is full; send the request again later", []),
    NotDurableError: ("the events are on too few servers; send the request again", []),
    StoreUnavailableError: ("the store did not take the events; send the request again", []),
    EngineUnavailableError: ("the engine process ended", []),
    UnauthorizedError: ("there is no key; send the header Authorization: Bearer farm_...", []),
    ForbiddenError: ("this key has not the scope rank, which the request needs", []),
    SlowRequestError: ("the body did not arrive within 10 s", []),
    TargetTooLongError: ("path and query are over 4096 bytes", []),
    HeadersTooLargeError: ("send at most 64 headers with 16384 bytes in all", []),
    KeyBusyError: ("8 requests of this key are under way, which is its limit", []),
    OverloadedError: ("the queue has no room for a request of high priority: 21.4 ms wait", []),
    TooManyConnectionsError: ("the service has as many connections as it takes", []),
    ForbiddenStepError: ("the answer would be degraded by no_history, which FARM_READING_FORBID makes an error", []),
    DeadlineExceededError: ("queue: an answer takes about 31 ms, 24 ms of it in the queue, and 20 ms are left", []),
    ServiceError: ("the service failed to answer; its log has the reason under this request_id", []),
}

_AT_THE_DOOR = (
    UnauthorizedError,
    ForbiddenError,
    SlowRequestError,
    TargetTooLongError,
    HeadersTooLargeError,
    TooManyConnectionsError,
)
_OF_ANY_BODY = (
    MalformedBodyError,
    BodyTooLargeError,
    UnsupportedMediaTypeError,
    InvalidRequestError,
    ServiceError,
    *_AT_THE_DOOR,
)
_OF_RANK = (KeyBusyError, OverloadedError, EngineUnavailableError, ForbiddenStepError, DeadlineExceededError)
_RETRY_AFTER = {"Retry-After": {"description": "Seconds to wait before", "schema": {"type": "integer", "minimum": 1}}}


def rank_body() -> dict[str, Any]:
    """Of POST /rank."""
    return _body("RankRequest", _REQUESTS)


def events_body(schema: RecordSchema) -> dict[str, Any]:
    """Of POST /events to a store of `schema`."""
    return _body(EVENTS_REQUEST, event_examples(schema))


def rank_responses() -> dict[int | str, dict[str, Any]]:
    """Of POST /rank: the answer and every error."""
    good = {"model": RankAnswer, "description": "The ranking", "content": {"application/json": {"example": _ANSWER}}}
    return {200: good, **problems(*_OF_ANY_BODY, *_OF_RANK)}


def events_responses() -> dict[int | str, dict[str, Any]]:
    """Of POST /events: the answer and every error."""
    example = {"accepted": 2, "request_id": _ANSWER["request_id"]}
    good = {"model": EventsAnswer, "description": "Durable", "content": {"application/json": {"example": example}}}
    return {202: good, **problems(*_OF_ANY_BODY, EventsBusyError, NotDurableError, StoreUnavailableError)}


def problems(*kinds: type[ServiceError]) -> dict[int | str, dict[str, Any]]:
    """Documented responses of these errors."""
    responses: dict[int | str, dict[str, Any]] = {}
    for status in dict.fromkeys(kind.status for kind in kinds):
        same = [kind for kind in kinds if kind.status == status]
        response = {"description": ", or ".join(kind.title for kind in same), "content": _problem_content(same)}
        responses[int(status)] = response | ({"headers": _RETRY_AFTER} if issubclass(same[0], UnavailableError) else {})
    return responses


def install_openapi(app: FastAPI, schema_now: Callable[[], RecordSchema]) -> None:
    """Make `app.openapi` give the whole document.  schema_now: of the store, which may come later than the service."""
    described: RecordSchema | None = None

    def document() -> dict[str, Any]:
        nonlocal described
        schema = schema_now()
        if app.openapi_schema is None or schema is not described:
            made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            made["components"]["schemas"] |= {
                model.__name__: _schema(model) for model in (RankRequest, Candidate, Problem)
            }
            made["components"]["schemas"] |= _schema(Problem).pop("$defs", {}) | event_schemas(schema, _SCHEMAS)
            app.openapi_schema, described = made, schema
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _schema(model: type[RankRequest] | type[Candidate] | type[Problem]) -> dict[str, Any]:
    return model.model_json_schema(ref_template=_SCHEMAS)


def _body(model: str, examples: dict[str, Any]) -> dict[str, Any]:
    content = {"schema": {"$ref": _SCHEMAS.format(model=model)}, "examples": examples}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def _problem_content(kinds: Sequence[type[ServiceError]]) -> dict[str, Any]:
    examples = {kind.type: {"summary": kind.title, "value": _problem_example(kind)} for kind in kinds}
    return {PROBLEM_JSON: {"schema": {"$ref": _SCHEMAS.format(model="Problem")}, "examples": examples}}


def _problem_example(kind: type[ServiceError]) -> dict[str, Any]:
    detail, errors = _PROBLEMS[kind]
    return {
        "type": f"urn:farm:problem:{kind.type}",
        "title": kind.title,
        "status": int(kind.status),
        "detail": detail,
        "errors": errors,
        "request_id": _ANSWER["request_id"],
    }
