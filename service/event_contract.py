"""What `POST /events` reads, as JSON Schema.  Its fields are those of the store's records, so the store says them."""

from __future__ import annotations

from typing import Any

from feature_store.events.parse import LEAST_TIME_MS, MAX_EVENTS, RECORDS
from feature_store.schema import EVENT_KEYS, RecordSchema, StoredField

EVENTS_REQUEST = "EventsRequest"

_DECIMAL = r"^(0|-?[1-9][0-9]{0,18})$"
_TITLES = {"video_view": "VideoView", "live_view": "LiveView", "author": "AuthorUpdate", "user": "UserUpdate"}


def event_schemas(schema: RecordSchema, reference: str) -> dict[str, Any]:
    """JSON Schemas by name: the request, and an event of each type.

    reference: how one names another, with {model} for the name.
    """
    kinds = {title: _event_schema(schema, kind) for kind, title in _TITLES.items()}
    events = {
        "type": "array",
        "minItems": 1,
        "maxItems": MAX_EVENTS,
        "items": {"oneOf": [{"$ref": reference.format(model=title)} for title in kinds]},
    }
    return {EVENTS_REQUEST: _object({"events": events}, ["events"]), **kinds}


def event_examples(schema: RecordSchema) -> dict[str, Any]:
    """Requests that a store of `schema` takes."""
    start = 1_651_708_800_000
    known = {"author_id": 301, "behaviours": list(schema.behaviours[:1])}
    stored = {field.name for field in schema.live}
    of_schema = {name: value for name, value in known.items() if name in stored}
    begun = {"type": "live_view", "user_id": 17, "view_id": 90001, "event_time": start, **of_schema}
    author = {"type": "author", "author_id": 301, "live_id": "9007199254740993", "updated_at": start}
    user = {"type": "user", "user_id": "17", "updated_at": start}
    return {
        "view": {
            "summary": "A view begins; its end, under the same view_id",
            "value": {"events": [begun, {**begun, "known_at": start + 40_000}]},
        },
        "attributes": {"summary": "What is new about an author and a user", "value": {"events": [author, user]}},
    }


def _event_schema(schema: RecordSchema, kind: str) -> dict[str, Any]:
    record = RECORDS[kind]
    is_view = record in ("video", "live")
    times = ("event_time", "known_at") if is_view else ("updated_at",)
    ids = ("user_id", "view_id") if is_view else (f"{record}_id",)
    stored = [field for field in schema.fields(record) if not (is_view and field.name in EVENT_KEYS)]
    fields = {
        field.name: _behaviours(schema) if is_view and field.name == "behaviours" else _field(schema, field)
        for field in stored
    }
    fields |= {name: _id(schema, nullable=False) for name in ids}
    fields |= {name: _time(nullable=name == "known_at") for name in times}
    return _object({"type": {"const": kind}, **fields}, ["type", *ids, times[0]])


def _field(schema: RecordSchema, field: StoredField) -> dict[str, Any]:
    described = {"description": field.description} if field.description else {}
    if field.name.endswith("_id"):
        return {**_id(schema, nullable=True), **described}
    least, greatest = field.bounds
    return {"type": ["integer", "null"], "minimum": least, "maximum": greatest, **described}


def _behaviours(schema: RecordSchema) -> dict[str, Any]:
    return {"anyOf": [{"type": "array", "items": {"enum": list(schema.behaviours)}}, {"type": "null"}]}


def _id(schema: RecordSchema, nullable: bool) -> dict[str, Any]:
    text = {"type": "string"} if schema.ids == "string" else {"type": "string", "pattern": _DECIMAL}
    return {"anyOf": [{"type": "integer"}, text, *([{"type": "null"}] if nullable else [])]}


def _time(nullable: bool) -> dict[str, Any]:
    description = "ms since 1970, at most 5 minutes ahead of the service's clock"
    kind: Any = ["integer", "null"] if nullable else "integer"
    return {"type": kind, "minimum": LEAST_TIME_MS, "description": description}


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
