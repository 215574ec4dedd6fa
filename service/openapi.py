"""The OpenAPI document: what FastAPI finds, the body of /rank that it does not parse, and examples."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service.contract import Candidate, Problem, RankAnswer, RankRequest
from service.errors import (
    PROBLEM_JSON,
    BodyTooLargeError,
    InvalidRequestError,
    MalformedBodyError,
    NotReadyError,
    ServiceError,
    UnsupportedMediaTypeError,
)

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
        "summary": "A moment of the past",
        "value": {"user_id": 17, "candidates": [301], "now_ms": 1_651_708_800_000},
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
    ServiceError: ("the service failed to answer; its log has the reason under this request_id", []),
}

RANK_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": _SCHEMAS.format(model="RankRequest")}, "examples": _REQUESTS}
        },
    }
}


def rank_responses() -> dict[int | str, dict[str, Any]]:
    """Of POST /rank: the answer and every error."""
    good = {"model": RankAnswer, "description": "The ranking", "content": {"application/json": {"example": _ANSWER}}}
    return {
        200: good,
        **problems(MalformedBodyError, BodyTooLargeError, UnsupportedMediaTypeError, InvalidRequestError, ServiceError),
    }


def problems(*kinds: type[ServiceError]) -> dict[int | str, dict[str, Any]]:
    """Documented responses of these errors."""
    return {int(kind.status): {"description": kind.title, "content": _problem_content(kind)} for kind in kinds}


def install_openapi(app: FastAPI) -> None:
    """Make `app.openapi` give the whole document."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            made["components"]["schemas"] |= {
                model.__name__: _schema(model) for model in (RankRequest, Candidate, Problem)
            }
            made["components"]["schemas"] |= _schema(Problem).pop("$defs", {})
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _schema(model: type[RankRequest] | type[Candidate] | type[Problem]) -> dict[str, Any]:
    return model.model_json_schema(ref_template=_SCHEMAS)


def _problem_content(kind: type[ServiceError]) -> dict[str, Any]:
    detail, errors = _PROBLEMS[kind]
    example = {
        "type": f"urn:farm:problem:{kind.type}",
        "title": kind.title,
        "status": int(kind.status),
        "detail": detail,
        "errors": errors,
        "request_id": _ANSWER["request_id"],
    }
    return {PROBLEM_JSON: {"schema": {"$ref": _SCHEMAS.format(model="Problem")}, "example": example}}
