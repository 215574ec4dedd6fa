"""The body of a request: its declared type checked, read within a limit."""

from __future__ import annotations

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from service.errors import BodyTooLargeError, UnsupportedMediaTypeError

JSON = "application/json"


async def read_json_body(scope: Scope, receive: Receive, limit_bytes: int) -> bytes:
    """The bytes of a JSON body, of which never more than the limit and one chunk are kept.

    UnsupportedMediaTypeError, BodyTooLargeError; ClientDisconnect when the client leaves before the end.
    """
    headers = dict(reversed(scope["headers"]))  # of a repeated one the first
    _require_json(headers)
    declared = headers.get(b"content-length", b"")
    if declared.isdigit() and int(declared) > limit_bytes:
        raise _too_large(limit_bytes)
    chunks, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk, more = message.get("body", b""), message.get("more_body", False)
        size += len(chunk)
        if size > limit_bytes:
            raise _too_large(limit_bytes)
        chunks.append(chunk)
    return b"".join(chunks)


def _require_json(headers: dict[bytes, bytes]) -> None:
    given = headers.get(b"content-type", b"").decode("latin-1")
    kind, _, parameters = given.partition(";")
    charset = parameters.strip().lower().removeprefix("charset=").strip('"')
    if kind.strip().lower() != JSON or charset not in ("", "utf-8"):
        shown = f"is {given[:80]!r}" if given else "is absent"
        raise UnsupportedMediaTypeError(
            f"the Content-Type {shown}; send {JSON} in UTF-8", [("Content-Type", f"must be {JSON}")]
        )
    encoding = headers.get(b"content-encoding", b"identity").decode("latin-1").lower()
    if encoding != "identity":
        raise UnsupportedMediaTypeError(
            f"send the body uncompressed, not as {encoding[:80]!r}", [("Content-Encoding", "must be identity")]
        )


def _too_large(limit_bytes: int) -> BodyTooLargeError:
    return BodyTooLargeError(
        f"the body is over {limit_bytes} bytes", [("body", f"must be at most {limit_bytes} bytes")]
    )
