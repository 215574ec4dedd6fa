"""A problem as the bytes of a whole HTTP answer, for where there is no request yet that an application could answer."""

from __future__ import annotations

import os

from service.errors import PROBLEM_JSON, REQUEST_ID_HEADER, ServiceError, problem_json


def refusal(error: ServiceError) -> bytes:
    """The connection is closed after it."""
    request_id = os.urandom(16).hex()
    content = problem_json(error, request_id)
    headers = {
        "content-type": PROBLEM_JSON,
        "content-length": str(len(content)),
        REQUEST_ID_HEADER.lower(): request_id,
        "connection": "close",
        **{name.lower(): value for name, value in error.headers.items()},
    }
    lines = [f"HTTP/1.1 {int(error.status)} {error.status.phrase}", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + content
