from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest

from feature_store.events.parse import (
    FUTURE_LIMIT_MS,
    LEAST_TIME_MS,
    MAX_ERRORS,
    InvalidEvent,
    parse_events,
    parse_lines,
)
from feature_store.ids import to_id64
from feature_store.records import known_at
from feature_store.schema import MISSING, RecordSchema, StoredField, widen

NOW_MS = 1_719_500_000_000
VIEW = {"type": "video_view", "user_id": 17, "view_id": 9, "event_time": NOW_MS - 60_000}
AUTHOR = {"type": "author", "author_id": 3, "live_id": 4, "updated_at": NOW_MS, "tag": 5}
USER = {"type": "user", "user_id": 17, "updated_at": NOW_MS - 1, "activity_group": 2}


def errors_of(schema: RecordSchema, *events: object) -> list[tuple[str, str]]:
    with pytest.raises(InvalidEvent) as caught:
        parse_events(list(events), schema, NOW_MS)
    return list(caught.value.errors)


def error_of(schema: RecordSchema, **changes: object) -> str:
    """The only error of a video view with these fields, which is of the last of them."""
    ((field, message),) = errors_of(schema, VIEW | changes)
    assert field == f"events[0].{list(changes)[-1]}"
    return message


def test_events_of_every_type(schema: RecordSchema) -> None:
    live = {
        **VIEW,
        "type": "live_view",
        "known_at": NOW_MS - 10_000,
        "author_id": str(2**62),
        "play_time": 50_000,
        "page": 1,
        "tag": None,
        "cluster": 3,
        "behaviours": ["like", "click"],
    }
    batch = parse_events(orjson.dumps([USER, VIEW, live, AUTHOR]), schema, NOW_MS)
    assert len(batch) == 4
    assert batch.video_users.tolist() == batch.live_users.tolist() == [17]
    assert batch.video.dtype == schema.dtype("video")
    missing = np.iinfo(np.int16).min
    assert batch.video.tolist() == [(9, NOW_MS - 60_000, -(2**31), MISSING, -(2**31), missing, missing, missing)]
    assert batch.live.tolist() == [(9, NOW_MS - 60_000, 50_000, 2**62, 50_000, 1, missing, 3, 0b1001)]
    assert known_at(batch.live).tolist() == [NOW_MS - 10_000]
    assert batch.authors.tolist() == [(3, 4, 5, missing)]
    assert batch.authors_at.tolist() == [NOW_MS]
    assert batch.users.tolist() == [(17, 2)]
    assert batch.users_at.tolist() == [NOW_MS - 1]


def test_no_behaviour_is_not_the_same_as_not_known(schema: RecordSchema) -> None:
    batch = parse_events([VIEW | {"behaviours": []}, VIEW | {"behaviours": None}], schema, NOW_MS)
    assert widen(batch.video["behaviours"]).tolist() == [0, MISSING]


def test_ids_as_integers_and_as_decimal_strings_are_the_same(schema: RecordSchema) -> None:
    ids = [0, -5, 2**63 - 1, -(2**63) + 1]
    integers = parse_events([VIEW | {"user_id": one, "view_id": one} for one in ids], schema, NOW_MS)
    strings = parse_events([VIEW | {"user_id": str(one), "view_id": str(one)} for one in ids], schema, NOW_MS)
    mixed = parse_events([VIEW | {"user_id": one, "view_id": str(one)} for one in ids], schema, NOW_MS)
    for batch in (integers, strings, mixed):
        assert batch.video_users.tolist() == ids
        assert batch.video["view_id"].tolist() == ids


def test_string_ids_are_hashed(schema: RecordSchema) -> None:
    hashed = schema.model_copy(update={"ids": "string"})
    batch = parse_events([VIEW | {"user_id": "ann", "author_id": "17"}, VIEW], hashed, NOW_MS)
    assert batch.video_users.tolist() == [to_id64("ann", "string"), 17]
    assert batch.video["author_id"].tolist() == [to_id64("17", "string"), MISSING]


def test_times_in_other_units_are_refused(schema: RecordSchema) -> None:
    assert error_of(schema, event_time=NOW_MS // 1000) == "1719500000 looks like seconds; send milliseconds since 1970"
    assert "looks like micro- or nanoseconds" in error_of(schema, event_time=1000 * NOW_MS)
    assert "is before 2000-01-01" in error_of(schema, event_time=LEAST_TIME_MS - 1)
    assert "looks like seconds" in error_of(schema, known_at=NOW_MS // 1000)
    ((field, message),) = errors_of(schema, AUTHOR | {"updated_at": NOW_MS // 1000})
    assert (field, "looks like seconds" in message) == ("events[0].updated_at", True)


def test_times_ahead_of_the_clock_are_refused(schema: RecordSchema) -> None:
    latest = NOW_MS + FUTURE_LIMIT_MS
    assert len(parse_events([VIEW | {"event_time": latest, "known_at": latest}], schema, NOW_MS)) == 1
    assert "is 300 s ahead of the clock here; at most 5 minutes" in error_of(schema, event_time=latest + 1)
    assert "is 300 s ahead" in error_of(schema, known_at=latest + 1)
    assert "is 300 s ahead" in errors_of(schema, USER | {"updated_at": latest + 1})[0][1]
    assert len(parse_events([VIEW | {"event_time": LEAST_TIME_MS}], schema, NOW_MS)) == 1


def test_the_outcome_is_known_after_the_start_and_within_the_dtype(schema: RecordSchema) -> None:
    start = VIEW["event_time"]
    assert error_of(schema, known_at=start - 1) == f"{start - 1} is before event_time {start}"
    early = NOW_MS - 2**31
    assert "at most 2147483647 can be stored" in error_of(schema, event_time=early, known_at=NOW_MS)
    batch = parse_events([VIEW | {"event_time": early, "known_at": NOW_MS - 1}], schema, NOW_MS)
    assert known_at(batch.video).tolist() == [NOW_MS - 1]


def test_values_of_another_kind_are_refused(schema: RecordSchema) -> None:
    assert error_of(schema, page=1.0) == "must be an integer, not 1.0"
    assert error_of(schema, page=True) == "must be an integer, not true"
    assert error_of(schema, page="1") == "must be an integer, not '1'"
    assert error_of(schema, event_time=[1]) == "must be an integer, not a list"
    assert "must be an integer or a decimal string" in error_of(schema, user_id="017")
    assert "must be an integer or a decimal string" in error_of(schema, author_id=1.5)
    assert "must be within" in error_of(schema, view_id=str(2**63))
    assert "must be within" in error_of(schema, view_id=MISSING)
    assert error_of(schema, behaviours="like") == "must be a list of behaviours, not 'like'"
    assert error_of(schema, behaviours=["lik"]).startswith("unknown behaviour 'lik'; known are click, effective_view")
    assert error_of(schema, behaviours=[["like"]]).startswith("unknown behaviour a list")


@pytest.mark.parametrize("name", ["play_time", "page", "tag"])
def test_limits_of_a_dtype_are_exact(schema: RecordSchema, name: str) -> None:
    low, high = next(field for field in schema.video if field.name == name).bounds
    low = low if name == "tag" else 0  # times and pages are never negative
    batch = parse_events([VIEW | {name: low}, VIEW | {name: high}], schema, NOW_MS)
    assert batch.video[name].tolist() == [low, high]
    for outside in (low - 1, high + 1, 2**63 - 1, 2**63, 2**64, MISSING):
        assert "is outside" in error_of(schema, **{name: outside})


def test_behaviours_that_the_dtype_cannot_hold_are_refused(schema: RecordSchema) -> None:
    narrow = tuple(
        StoredField(name="behaviours", dtype="i1") if field.name == "behaviours" else field for field in schema.video
    )
    short = schema.model_copy(update={"video": narrow})
    assert len(parse_events([VIEW | {"behaviours": ["follow"]}], short, NOW_MS)) == 1
    assert "128 is outside" in error_of(short, behaviours=["share"])


def test_absent_and_unknown_fields_are_named(schema: RecordSchema) -> None:
    assert errors_of(schema, {"type": "video_view"}) == [
        ("events[0].user_id", "is required"),
        ("events[0].view_id", "is required"),
        ("events[0].event_time", "is required"),
    ]
    assert errors_of(schema, {"type": "author"}, {"type": "user", "user_id": None, "updated_at": NOW_MS}) == [
        ("events[0].updated_at", "is required"),
        ("events[0].author_id", "is required"),
        ("events[1].user_id", "is required"),
    ]
    assert error_of(schema, known_after=5).startswith("unknown field; known are author_id, behaviours, event_time, kno")
    assert errors_of(schema, AUTHOR | {"page": 1})[0][0] == "events[0].page"


def test_what_is_no_event_is_named(schema: RecordSchema) -> None:
    found = errors_of(schema, VIEW, 5, {}, {"type": ["video_view"]}, VIEW | {"type": "view"})
    assert found == [
        ("events[1]", "must be an object, not 5"),
        ("events[2].type", "is required; known are video_view, live_view, author, user"),
        ("events[3].type", "unknown type a list; known are video_view, live_view, author, user"),
        ("events[4].type", "unknown type 'view'; known are video_view, live_view, author, user"),
    ]


def test_every_wrong_field_is_named_up_to_a_limit(schema: RecordSchema) -> None:
    wrong: dict[str, Any] = {"event_time": NOW_MS // 1000, "tag": "a", "page": 2**20}
    events = [VIEW] * 3 + [AUTHOR | {"tag": 2**20}] + [VIEW | wrong] * 100
    with pytest.raises(InvalidEvent, match=r"^events\[3\].tag: 1048576 is outside .* \(and 19 more\)$") as caught:
        parse_events(events, schema, NOW_MS)
    fields = [field for field, _ in caught.value.errors]
    assert len(fields) == MAX_ERRORS
    assert fields[0] == "events[3].tag"
    assert set(fields[1:4]) == {f"events[4].{name}" for name in wrong}
    assert caught.value.rows == (3, *range(4, 11))


def test_the_number_of_events_is_limited(schema: RecordSchema) -> None:
    assert len(parse_events([VIEW] * 1000, schema, NOW_MS)) == 1000
    for count in (0, 1001):
        with pytest.raises(InvalidEvent, match=f"events: must be 1 to 1000 events, not {count}"):
            parse_events([VIEW] * count, schema, NOW_MS)


def test_a_body_that_is_no_list_is_refused(schema: RecordSchema) -> None:
    with pytest.raises(InvalidEvent, match="body: is not JSON"):
        parse_events(b"[{", schema, NOW_MS)
    with pytest.raises(InvalidEvent, match="body: must be a list of events"):
        parse_events(b"{}", schema, NOW_MS)


def test_lines_are_named_by_their_number(schema: RecordSchema) -> None:
    lines = [orjson.dumps(VIEW), b"", b"  \n", orjson.dumps(AUTHOR).decode()]
    assert len(parse_lines(lines, schema, NOW_MS)) == 2
    bad = [*lines, b'{"type": ', orjson.dumps(VIEW | {"event_time": 1_719_500_000})]
    with pytest.raises(InvalidEvent) as caught:
        parse_lines(bad, schema, NOW_MS, first_line_number=101)
    (first, second) = caught.value.errors
    assert first[0] == "line 105"
    assert first[1].startswith("is not JSON")
    assert second == ("line 106, event_time", "1719500000 looks like seconds; send milliseconds since 1970")
    assert caught.value.rows == (4, 5)


def test_a_schema_whose_fields_clash_with_those_of_events_is_refused(schema: RecordSchema) -> None:
    clash = schema.model_copy(update={"video": (*schema.video, StoredField(name="known_at", dtype="i8"))})
    with pytest.raises(ValueError, match="video: the field 'known_at' has the name"):
        parse_events([VIEW], clash, NOW_MS)
