"""Events from outside, JSON, to a checked EventBatch; or an error that names each wrong field and the fix.

Checked by columns, so that 1,000 events take milliseconds; single values are looked at only where a column is wrong.
Letters: E events of one type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np
import orjson

from feature_store.events.batch import EventBatch
from feature_store.ids import shown, to_id64
from feature_store.records import records_from_columns
from feature_store.schema import MISSING, RecordSchema, StoredField

MAX_EVENTS = 1000
MAX_ERRORS = 20
LEAST_TIME_MS = 946_684_800_000  # 2000-01-01; seconds fall below it
FUTURE_LIMIT_MS = 300_000  # how far the clocks of hosts may be apart
RECORDS = {"video_view": "video", "live_view": "live", "author": "author", "user": "user"}
"""The record of the schema that an event of each type becomes."""

_NEVER_NEGATIVE = ("play_time", "page")  # whatever their dtype would hold (docs/data.md)
_VIEW_KEYS, _UPDATE_KEYS = ("type", "user_id", "known_at"), ("type", "updated_at")  # beside the fields of the record
_REQUIRED = {
    "video": ("user_id", "view_id", "event_time"),
    "live": ("user_id", "view_id", "event_time"),
    "author": ("author_id", "updated_at"),
    "user": ("user_id", "updated_at"),
}


class InvalidEvent(ValueError):  # noqa: N818 - it is what was found
    """Events that are refused, all of them.

    errors: the first MAX_ERRORS wrong fields and what is wrong;  rows: which of the events or lines they are of.
    """

    def __init__(self, errors: Sequence[tuple[str, str]], rows: Iterable[int] = ()) -> None:
        field, message = errors[0]
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        super().__init__(f"{field}: {message}{more}")
        self.errors, self.rows = tuple(errors), tuple(sorted(set(rows)))


def parse_events(body: bytes | Sequence[object], schema: RecordSchema, now_ms: int) -> EventBatch:
    """1 to MAX_EVENTS events of a request.

    body: the list of them, or its JSON;  now_ms: the clock, ms since 1970.
    InvalidEvent names fields as in ``events[3].event_time``.
    """
    events = _loaded(body) if isinstance(body, bytes) else body
    if not 1 <= len(events) <= MAX_EVENTS:
        raise InvalidEvent([("events", f"must be 1 to {MAX_EVENTS} events, not {len(events)}")])
    errors = _Errors(lambda row, member: f"events[{row}]" + (f".{member}" if member else ""))
    return _parse(dict(enumerate(events)), schema, now_ms, errors)


def parse_lines(
    lines: Sequence[bytes | str], schema: RecordSchema, now_ms: int, first_line_number: int = 1
) -> EventBatch:
    """Events of JSON Lines, one a line; blank lines are passed over.

    InvalidEvent names fields as in ``line 12, event_time``; its rows count from 0, in `lines`.
    """
    errors = _Errors(lambda row, member: f"line {first_line_number + row}" + (f", {member}" if member else ""))
    events: dict[int, object] = {}
    for row, line in enumerate(lines):
        if line and not line.isspace():
            try:
                events[row] = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                errors.add(row, "", f"is not JSON: {error}")
    return _parse(events, schema, now_ms, errors)


class _Errors:
    """What is wrong so far: row of the request, member of the event, message."""

    def __init__(self, name: Callable[[int, str], str]) -> None:
        self._name = name
        self._found: list[tuple[int, str, str]] = []

    def add(self, row: int, member: str, message: str) -> None:
        self._found.append((row, member, message))

    def raise_any(self) -> None:
        """InvalidEvent with the first ones, by row."""
        first = sorted(self._found, key=lambda found: found[0])[:MAX_ERRORS]
        if first:
            named = [(self._name(row, member[:80]), message) for row, member, message in first]
            raise InvalidEvent(named, (row for row, _, _ in first))


def _loaded(body: bytes) -> list[object]:
    try:
        events = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidEvent([("body", f"is not JSON: {error}")]) from None
    if not isinstance(events, list):
        raise InvalidEvent([("body", "must be a list of events")])
    return events


def _parse(events: Mapping[int, object], schema: RecordSchema, now_ms: int, errors: _Errors) -> EventBatch:
    """events: by row."""
    rows = _rows_by_record(events, errors)
    parts = {record: _Events(schema, record, now_ms, rows[record], errors) for record in rows}
    owners = {record: parts[record].owners() for record in rows}
    columns = {record: parts[record].columns(owners[record]) for record in rows}
    errors.raise_any()
    video, live, authors, users = (records_from_columns(schema, record, columns[record]) for record in rows)
    return EventBatch(owners["video"], video, owners["live"], live, authors, owners["author"], users, owners["user"])


def _rows_by_record(events: Mapping[int, object], errors: _Errors) -> dict[str, dict[int, dict[str, object]]]:
    """The events of each record, by row."""
    found: dict[str, dict[int, dict[str, object]]] = {record: {} for record in RECORDS.values()}
    for row, event in events.items():
        if not isinstance(event, dict):
            errors.add(row, "", f"must be an object, not {shown(event)}")
            continue
        kind = event.get("type")
        record = RECORDS.get(kind) if isinstance(kind, str) else None
        if record is None:
            given = "is required" if kind is None else f"unknown type {shown(kind)}"
            errors.add(row, "type", f"{given}; known are {', '.join(RECORDS)}")
        else:
            found[record][row] = event
    return found


class _Events:
    """The events of one record, by columns [E].  A value that is wrong goes to the errors and counts as missing."""

    def __init__(
        self, schema: RecordSchema, record: str, now_ms: int, events: Mapping[int, dict[str, object]], errors: _Errors
    ) -> None:
        self._schema, self._record, self._now_ms = schema, record, now_ms
        self._rows, self._events, self._errors = list(events), list(events.values()), errors
        self._fields = {field.name: field for field in schema.fields(record) if field.name != "known_after"}
        own = _VIEW_KEYS if record in ("video", "live") else _UPDATE_KEYS
        taken = [name for name in own if name in self._fields]
        if taken:
            raise ValueError(f"{record}: the field {taken[0]!r} has the name that events use for something else")
        self._refuse_unknown({*own, *self._fields})

    def owners(self) -> np.ndarray:
        """The user of each view, or when each update was said.  [E] int64"""
        if self._record in ("video", "live"):
            return self._ids("user_id")
        return self._times("updated_at")

    def columns(self, owners: np.ndarray) -> dict[str, np.ndarray]:
        """What the records are made of."""
        columns = {name: self._column(field) for name, field in self._fields.items()}
        if self._record in ("video", "live"):
            columns["known_after"] = self._known_after(columns["event_time"])
        return columns

    def _refuse_unknown(self, known: set[str]) -> None:
        if set().union(*self._events) <= known:
            return
        message = f"unknown field; known are {', '.join(sorted(known))}"
        for row, event in enumerate(self._events):
            for name in sorted(set(event) - known)[:MAX_ERRORS]:
                self._fail(row, name, message)

    def _column(self, field: StoredField) -> np.ndarray:
        if field.name == "event_time":
            return self._times(field.name)
        if field.name == "behaviours" and self._record in ("video", "live"):
            bits = {name: 1 << bit for bit, name in enumerate(self._schema.behaviours)}
            column = self._converted(field.name, self._values(field.name), partial(_behaviours, bits))
        elif field.name.endswith("_id"):
            column = self._ids(field.name)
        else:
            column = self._integers(field.name, self._values(field.name), _integer)
        low, high = field.bounds
        low = 0 if field.name in _NEVER_NEGATIVE else low
        wrong = (column != MISSING) & ((column < low) | (column > high))
        self._fail_where(wrong, field.name, lambda row: f"{column[row]} is outside {low}..{high}")
        return column

    def _ids(self, name: str) -> np.ndarray:
        values = self._values(name)
        column = _decimals(values) if self._schema.ids == "integer" else None
        if column is None:
            column = self._integers(name, values, partial(to_id64, ids=self._schema.ids))
        return column

    def _times(self, name: str) -> np.ndarray:
        column = self._integers(name, self._values(name), _integer)
        latest = self._now_ms + FUTURE_LIMIT_MS
        early = (column != MISSING) & (column < LEAST_TIME_MS)
        self._fail_where(early, name, lambda row: _too_early(int(column[row]), latest))
        self._fail_where(column > latest, name, lambda row: _too_late(int(column[row]), self._now_ms))
        return np.where(early | (column > latest), MISSING, column)

    def _known_after(self, event_time: np.ndarray) -> np.ndarray:
        known_at = self._times("known_at")
        after = np.where((known_at == MISSING) | (event_time == MISSING), 0, known_at - event_time)
        limit = next(field.bounds[1] for field in self._schema.fields(self._record) if field.name == "known_after")
        self._fail_where(after < 0, "known_at", lambda row: f"{known_at[row]} is before event_time {event_time[row]}")
        late = "{} is {} ms after event_time; at most {} can be stored".format
        self._fail_where(after > limit, "known_at", lambda row: late(known_at[row], after[row], limit))
        return np.where(known_at == MISSING, MISSING, after)

    def _integers(self, name: str, values: list[object], convert: Callable[[object], int]) -> np.ndarray:
        """The column at once when it is of integers and null, else value by value."""
        if set(map(type, values)) <= {int, type(None)}:
            missing = values.count(None)
            plain = [MISSING if value is None else value for value in values] if missing else values
            try:
                column = np.array(plain, np.int64)
            except OverflowError:
                return self._converted(name, values, convert)
            if np.count_nonzero(column == MISSING) == missing:  # else MISSING itself was sent
                return column
        return self._converted(name, values, convert)

    def _converted(self, name: str, values: list[object], convert: Callable[[object], int]) -> np.ndarray:
        """Value by value; ValueErrors of `convert` become errors of the field, until there are enough of them."""
        column = np.full(len(values), MISSING)
        failed = 0
        for row, value in enumerate(values):
            if value is not None and failed < MAX_ERRORS:
                try:
                    column[row] = convert(value)
                except ValueError as error:
                    self._fail(row, name, str(error))
                    failed += 1
        return column

    def _values(self, name: str) -> list[object]:
        values = [event.get(name) for event in self._events]
        if name in _REQUIRED[self._record] and None in values:
            absent = [row for row, value in enumerate(values) if value is None]
            for row in absent[:MAX_ERRORS]:
                self._fail(row, name, "is required")
        return values

    def _fail_where(self, wrong: np.ndarray, name: str, message: Callable[[int], str]) -> None:
        """wrong: [E] bool."""
        if wrong.any():
            for row in np.flatnonzero(wrong)[:MAX_ERRORS].tolist():
                self._fail(row, name, message(row))

    def _fail(self, row: int, name: str, message: str) -> None:
        self._errors.add(self._rows[row], name, message)


def _decimals(values: list[object]) -> np.ndarray | None:
    """Decimal strings at once [E] int64; None when one of them is not an id in the only way to write it."""
    texts = [value for value in values if isinstance(value, str)]
    if len(texts) < len(values):
        return None
    try:
        numbers = [int(text) for text in texts]
        column = np.array(numbers, np.int64)
    except (ValueError, OverflowError):
        return None
    return column if list(map(str, numbers)) == texts and (column != MISSING).all() else None


def _integer(value: object) -> int:
    if type(value) is not int:
        raise ValueError(f"must be an integer, not {shown(value)}")
    if not MISSING < value < 2**63:
        raise ValueError(f"{shown(value)} is outside {MISSING + 1}..{2**63 - 1}")
    return value


def _behaviours(bits: Mapping[str, int], value: object) -> int:
    """The bit set of a list of names."""
    if not isinstance(value, list):
        raise ValueError(f"must be a list of behaviours, not {shown(value)}")
    found = 0
    for name in value:
        bit = bits.get(name) if isinstance(name, str) else None
        if bit is None:
            raise ValueError(f"unknown behaviour {shown(name)}; known are {', '.join(bits)}")
        found |= bit
    return found


def _too_early(value: int, latest: int) -> str:
    if LEAST_TIME_MS <= 1000 * value <= latest:
        return f"{value} looks like seconds; send milliseconds since 1970"
    return f"{value} is before 2000-01-01 ({LEAST_TIME_MS}); send milliseconds since 1970"


def _too_late(value: int, now_ms: int) -> str:
    if value > 100 * now_ms:
        return f"{value} looks like micro- or nanoseconds; send milliseconds since 1970"
    ahead = (value - now_ms) / 1000
    return f"{value} is {ahead:.0f} s ahead of the clock here; at most {FUTURE_LIMIT_MS // 60_000} minutes are allowed"
