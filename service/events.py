"""Events from outside: parsed in the pool, accepted by the sink, answered when they are durable."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import orjson

from feature_store.events.batch import EventBatch
from feature_store.events.log import LogBusy, NotDurable
from feature_store.events.parse import MAX_ERRORS, InvalidEvent, parse_events
from feature_store.schema import RecordSchema
from feature_store.store import StoreError
from service.errors import (
    EventsBusyError,
    InvalidRequestError,
    MalformedBodyError,
    NotDurableError,
    ServiceError,
    StoreUnavailableError,
)
from service.metrics import count_accepted, count_rejected
from service.runtime import Runtime

_log = logging.getLogger(__name__)


async def accept_events(runtime: Runtime, body: bytes, request_id: str) -> bytes:
    """The JSON answer to the JSON request `body`, when all its events are durable.

    ServiceError when it is no good request (then nothing is kept of it) or they are not known to be durable.
    """
    loop, source = asyncio.get_running_loop(), runtime.source
    # 1,000 events take milliseconds, for which the event loop would answer nobody
    batch = await loop.run_in_executor(runtime.pool, parse_body, body, source.store.schema, int(1000 * time.time()))
    with _as_service_errors(request_id):
        await source.sink.accept(batch)
    count_accepted(batch)
    return orjson.dumps({"accepted": len(batch), "request_id": request_id})


def parse_body(body: bytes, schema: RecordSchema, now_ms: int) -> EventBatch:
    """MalformedBodyError when it is not JSON, InvalidRequestError when it is no request of the contract."""
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedBodyError(f"not JSON: {error}") from None
    try:
        return parse_events(_events(request), schema, now_ms)
    except InvalidEvent as error:
        raise InvalidRequestError(error.errors) from None


def _events(request: object) -> list[object]:
    if not isinstance(request, dict):
        raise InvalidRequestError([("body", 'must be a JSON object {"events": [...]}')])
    errors = [(name[:80], "unknown field; known are events") for name in request if name != "events"][:MAX_ERRORS]
    events = request.get("events")
    if isinstance(events, list) and not errors:
        return events
    if not isinstance(events, list):
        errors.insert(0, ("events", "is required" if events is None else "must be a list of events"))
    raise InvalidRequestError(errors)


@contextmanager
def _as_service_errors(request_id: str) -> Iterator[None]:
    try:
        yield
    except LogBusy as error:
        raise EventsBusyError(f"{error}; send the request again later", error.retry_after_s) from error
    except NotDurable as error:
        raise NotDurableError(f"{error}; send the request again") from error
    except StoreError as error:
        _log.error("request %s: events were not accepted: %s", request_id, error)
        raise StoreUnavailableError("the store did not take the events; send the request again") from error


@contextmanager
def counting_rejections() -> Iterator[None]:
    """Count the ServiceError that leaves."""
    try:
        yield
    except ServiceError as error:
        count_rejected(error.type)
        raise
