"""Errors that may reach a client: each carries its HTTP status; one handler makes RFC 9457 problem details of them."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

PROBLEM_JSON = "application/problem+json"
REQUEST_ID_HEADER = "X-Request-Id"

_log = logging.getLogger(__name__)


class ServiceError(Exception):
    """The family.  `detail` and `errors` (field, message) are shown to the client, `headers` are sent with them."""

    status = HTTPStatus.INTERNAL_SERVER_ERROR
    type = "internal-error"
    title = "Internal error"

    def __init__(
        self, detail: str, errors: Sequence[tuple[str, str]] = (), headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.detail, self.errors, self.headers = detail, tuple(errors), dict(headers or {})


class MalformedBodyError(ServiceError):
    """The body is not the JSON text it claims to be."""

    status = HTTPStatus.BAD_REQUEST
    type = "malformed-body"
    title = "Malformed body"


class BodyTooLargeError(ServiceError):
    """The body is over the limit."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    type = "body-too-large"
    title = "Body too large"


class UnsupportedMediaTypeError(ServiceError):
    """The body is not JSON."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    type = "unsupported-media-type"
    title = "Unsupported media type"


class InvalidRequestError(ServiceError):
    """The JSON is not a request of the contract."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY
    type = "invalid-request"
    title = "Invalid request"

    def __init__(self, errors: Sequence[tuple[str, str]]) -> None:
        field, message = errors[0]
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        super().__init__(f"{field}: {message}{more}", errors)


class NotReadyError(ServiceError):
    """The service does not take traffic, not yet or no longer."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    type = "not-ready"
    title = "Not ready"


class UnavailableError(ServiceError):
    """Not now: the same request may be sent again in a while."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    type = "unavailable"
    title = "Unavailable"

    def __init__(self, detail: str, retry_after_s: float = 1.0) -> None:
        super().__init__(detail, headers={"Retry-After": str(max(1, math.ceil(retry_after_s)))})


class EventsBusyError(UnavailableError):
    """The log of events is full: what was sent before is not merged yet."""

    type = "events-busy"
    title = "Events busy"


class NotDurableError(UnavailableError):
    """Fewer servers than asked for have acknowledged the events in time."""

    type = "not-durable"
    title = "Not durable"


class StoreUnavailableError(UnavailableError):
    """The store did not take the events."""

    type = "store-unavailable"
    title = "Store unavailable"


class EngineUnavailableError(UnavailableError):
    """Nobody runs the towers now: the service is stopping, or the engine process was lost."""

    type = "engine-unavailable"
    title = "Engine unavailable"


class OverloadedError(UnavailableError):
    """More is asked than can be answered soon."""

    type = "overloaded"
    title = "Overloaded"


class KeyBusyError(UnavailableError):
    """A key has as many requests under way as it may have."""

    status = HTTPStatus.TOO_MANY_REQUESTS
    type = "key-busy"
    title = "Too many requests of one key"


class ForbiddenStepError(UnavailableError):
    """The answer would lack what a setting says it must not lack."""

    type = "degraded"
    title = "Degraded"


class DeadlineExceededError(ServiceError):
    """There is no answer in the time that the request gives."""

    status = HTTPStatus.GATEWAY_TIMEOUT
    type = "deadline-exceeded"
    title = "Deadline exceeded"

    def __init__(self, stage: str, detail: str) -> None:
        """stage: in which the time runs out, one of store, queue and inference."""
        super().__init__(f"{stage}: {detail}")


def install_error_handlers(app: FastAPI) -> None:
    """Every error of the application leaves as a problem."""
    for kind in (ServiceError, HTTPException, RequestValidationError, ClientDisconnect, Exception):
        app.add_exception_handler(kind, problem_of)


async def problem_of(request: Request, error: Exception) -> Response:
    """What a client is told of an error, RFC 9457."""
    if isinstance(error, HTTPException):
        phrase = HTTPStatus(error.status_code).phrase
        detail = f"{request.method} {request.url.path}: {str(error.detail).lower()}"
        content = _problem("about:blank", phrase, error.status_code, detail, (), _request_id(request))
        return Response(content, error.status_code, error.headers, PROBLEM_JSON)
    told = told_error(error, _request_id(request))
    return Response(problem_json(told, _request_id(request)), int(told.status), told.headers, PROBLEM_JSON)


def told_error(error: Exception, request_id: str) -> ServiceError:
    """What a client is told instead of `error`, where it is none of ours."""
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, ClientDisconnect):  # nobody reads it; it makes the request a 400 in the metrics
        return MalformedBodyError("the client left before the body was complete")
    _log.error("request %s failed: %r", request_id, error)
    return ServiceError("the service failed to answer; its log has the reason under this request_id")


def _invalid(error: RequestValidationError) -> ServiceError:
    """What the framework says of a body that one of its models reads."""
    found = error.errors()
    if found[0]["type"] == "json_invalid":
        return MalformedBodyError(f"the body is no JSON: {found[0]['ctx']['error']}")
    return InvalidRequestError([(".".join(map(str, one["loc"][1:])) or "body", one["msg"]) for one in found])


def problem_json(error: ServiceError, request_id: str) -> bytes:
    """The body of a problem."""
    return _problem(f"urn:farm:problem:{error.type}", error.title, error.status, error.detail, error.errors, request_id)


def _problem(
    kind: str, title: str, status: int, detail: str, errors: Sequence[tuple[str, str]], request_id: str
) -> bytes:
    content = {
        "type": kind,
        "title": title,
        "status": int(status),
        "detail": detail,
        "errors": [{"field": field, "message": message} for field, message in errors],
        "request_id": request_id,
    }
    return orjson.dumps(content)


def _request_id(request: Request) -> str:
    return str(getattr(request.state, "request_id", ""))
