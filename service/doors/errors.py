"""Why somebody is sent away at the door."""

from __future__ import annotations

from http import HTTPStatus

from service.errors import ServiceError, UnavailableError


class UnauthorizedError(ServiceError):
    """Nobody knows the key, or there is none."""

    status = HTTPStatus.UNAUTHORIZED
    type = "unauthorized"
    title = "Unauthorized"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"WWW-Authenticate": "Bearer"})


class ForbiddenError(ServiceError):
    """The key is good, but not for this."""

    status = HTTPStatus.FORBIDDEN
    type = "forbidden"
    title = "Forbidden"


class MalformedRequestError(ServiceError):
    """What came is not HTTP."""

    status = HTTPStatus.BAD_REQUEST
    type = "malformed-request"
    title = "Malformed request"


class SlowRequestError(ServiceError):
    """The request did not arrive in time."""

    status = HTTPStatus.REQUEST_TIMEOUT
    type = "slow-request"
    title = "Slow request"


class TargetTooLongError(ServiceError):
    """The path and query are over the limit."""

    status = HTTPStatus.REQUEST_URI_TOO_LONG
    type = "target-too-long"
    title = "Target too long"


class HeadersTooLargeError(ServiceError):
    """The headers are over a limit."""

    status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
    type = "headers-too-large"
    title = "Headers too large"


class TooManyConnectionsError(UnavailableError):
    """As many connections as there may be, and none that can be closed for a new one."""

    type = "too-many-connections"
    title = "Too many connections"
