"""The body of a request: its declared type checked, read within a limit."""

from __future__ import annotations

from fastapi import Request

from service.errors import BodyTooLargeError, UnsupportedMediaTypeError

JSON = "application/json"


async def read_json_body(request: Request, limit_bytes: int) -> bytes:
    """The bytes of a JSON body, of which never more than the limit and one chunk are kept.

    UnsupportedMediaTypeError, BodyTooLargeError.
    """
    _require_json(request)
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit_bytes:
        raise _too_large(limit_bytes)
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit_bytes:
            raise _too_large(limit_bytes)
        chunks.append(chunk)
    return b"".join(chunks)


def _require_json(request: Request) -> None:
    given = request.headers.get("content-type", "")
    kind, _, parameters = given.partition(";")
    charset = parameters.strip().lower().removeprefix("charset=").strip('"')
    if kind.strip().lower() != JSON or charset not in ("", "utf-8"):
        shown = f"is {given[:80]!r}" if given else "is absent"
        raise UnsupportedMediaTypeError(
            f"the Content-Type {shown}; send {JSON} in UTF-8", [("Content-Type", f"must be {JSON}")]
        )
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise UnsupportedMediaTypeError(
            f"send the body uncompressed, not as {encoding[:80]!r}", [("Content-Encoding", "must be identity")]
        )


def _too_large(limit_bytes: int) -> BodyTooLargeError:
    return BodyTooLargeError(
        f"the body is over {limit_bytes} bytes", [("body", f"must be at most {limit_bytes} bytes")]
    )
