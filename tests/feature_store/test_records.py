from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store.records import (
    TIME_LIMIT,
    CorruptRecord,
    UserRecord,
    decode_author,
    decode_user,
    empty_user,
    encode_author,
    encode_authors,
    encode_user,
    encode_users,
    known_at,
    records_from_columns,
    stamp,
)
from feature_store.schema import MISSING, RecordSchema, default_schema, widen

Make = Callable[..., np.ndarray]


def a_user(schema: RecordSchema, make_events: Make, videos: int, lives: int, version: int = 7) -> UserRecord:
    attributes = records_from_columns(schema, "user", {"user_id": [-5], "activity_group": [3]})[0]
    video, live = make_events("video", videos), make_events("live", lives, first=10**6)
    return UserRecord(attributes, video, live, version, attributes_at=1_700_000_000_000)


def assert_same(left: UserRecord, right: UserRecord) -> None:
    assert (left.attributes, left.attributes_at) == (right.attributes, right.attributes_at)
    assert left.version == right.version
    np.testing.assert_array_equal(left.video, right.video)
    np.testing.assert_array_equal(left.live, right.live)


@given(st.data())
def test_columns_round_trip_with_extremes(data: st.DataObject) -> None:
    schema = default_schema()
    columns = {}
    for field in schema.fields("author"):
        low, high = field.bounds
        values = st.sampled_from([low, high, 0]) | st.integers(low, high)
        if field.name != "author_id":
            values |= st.just(MISSING)
        columns[field.name] = data.draw(st.lists(values, min_size=3, max_size=3))
    records = records_from_columns(schema, "author", columns)
    assert {name: widen(records[name]).tolist() for name in columns} == columns


def test_missing_columns_and_values(schema: RecordSchema) -> None:
    columns = {"view_id": [1, 2], "event_time": [3, 4], "tag": [None, 5], "page": None}
    records = records_from_columns(schema, "video", columns)
    assert widen(records["tag"]).tolist() == [MISSING, 5]
    assert widen(records["page"]).tolist() == widen(records["author_id"]).tolist() == [MISSING, MISSING]
    assert known_at(records).tolist() == [MISSING, MISSING]
    assert len(records_from_columns(schema, "video", {"view_id": [], "event_time": []})) == 0


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"tag": [0, 40_000]}, r"video.tag: 40000 in row 1 is outside -32767..32767"),
        ({"tag": [-32_768, 0]}, r"video.tag: -32768 in row 0 is outside"),
        ({"known_after": [1, -1]}, r"video.known_after: -1 in row 1 is outside 0..2147483647"),
        ({"behaviours": [256, 0]}, r"video.behaviours: 256 in row 0 is outside 0..255"),
        (
            {"event_time": [2**52, 0]},
            r"video.event_time: 4503599627370496 in row 0 is outside .* ms: times are kept exact",
        ),
        ({"event_time": [0, -(2**52)]}, r"video.event_time: -4503599627370496 in row 1 is outside .* ms: times are"),
        ({"author_id": np.array([1, 2**63], np.uint64)}, "video.author_id: 9223372036854775808 is beyond"),
        ({"view_id": [1, None]}, r"video.view_id: missing in row 1"),
        ({"event_time": None}, r"video.event_time: missing in row 0"),
        ({"tag": [1.5, 2.0]}, r"video.tag: .* of integers, not float64"),
        ({"tag": [True, False]}, r"video.tag: .* of integers, not bool"),
        ({"tag": ["1", "2"]}, r"video.tag: .* of integers"),
        ({"tag": [[1], [2]]}, r"video.tag: a column is one-dimensional"),
        ({"tag": [1]}, r"video: columns are of different lengths"),
        ({"colour": [1, 2]}, r"video: no field colour; fields are view_id"),
    ],
)
def test_errors_name_field_value_and_limits(schema: RecordSchema, columns: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        records_from_columns(schema, "video", {"view_id": [1, 2], "event_time": [3, 4], **columns})


@pytest.mark.parametrize(("videos", "lives"), [(0, 0), (1, 0), (0, 1), (50, 50), (60, 54)])
def test_user_round_trip(schema: RecordSchema, make_events: Make, videos: int, lives: int) -> None:
    user = a_user(schema, make_events, videos, lives, version=2**63)
    assert_same(decode_user(schema, encode_user(schema, user)), user)
    assert_same(decode_user(schema, encode_user(schema, empty_user(schema))), empty_user(schema))


def test_two_full_histories_fit_one_page(schema: RecordSchema, make_events: Make) -> None:
    assert len(encode_user(schema, a_user(schema, make_events, 50, 50))) <= 4096


@pytest.mark.parametrize("with_attributes", [True, False])
def test_many_users_are_encoded_as_each(schema: RecordSchema, make_events: Make, with_attributes: bool) -> None:
    records = records_from_columns(schema, "user", {"user_id": [1, 2, 3][: 3 * with_attributes]})
    attributes = stamp(schema, "user", records, 77), np.arange(4) * with_attributes
    video, live = make_events("video", 5), make_events("live", 2)
    histories = (video, np.array([0, 2, 2, 5])), (live, np.array([0, 0, 2, 2]))
    values = list(encode_users(schema, 9, attributes, *histories))
    users = [decode_user(schema, value) for value in values]
    assert [(len(user.video), len(user.live), user.version) for user in users] == [(2, 0, 9), (0, 2, 9), (3, 0, 9)]
    assert [(user.attributes and int(user.attributes["user_id"]), user.attributes_at) for user in users] == (
        [(1, 77), (2, 77), (3, 77)] if with_attributes else [(None, 0)] * 3
    )
    assert [encode_user(schema, user) for user in users] == values
    np.testing.assert_array_equal(np.concatenate([user.video for user in users]), video)


def test_author_round_trip(schema: RecordSchema) -> None:
    lives = records_from_columns(schema, "author", {"author_id": [7, 7], "live_id": [1, MISSING], "tag": [5, 6]})
    found, updated_at = decode_author(schema, encode_author(schema, lives, np.array([3, TIME_LIMIT]), 1))
    np.testing.assert_array_equal(found, lives)
    assert updated_at.tolist() == [3, TIME_LIMIT]
    several = stamp(schema, "author", np.concatenate([lives, lives[:1]]), np.array([1, 2, 3])), np.array([0, 1, 3])
    decoded = [decode_author(schema, value) for value in encode_authors(schema, 1, several)]
    assert [(rows["live_id"].tolist(), at.tolist()) for rows, at in decoded] == [([1], [1]), ([MISSING, 1], [2, 3])]


@pytest.mark.parametrize("at", [np.array([1]), np.array([1, TIME_LIMIT + 1]), -TIME_LIMIT - 1, MISSING])
def test_times_that_do_not_fit_are_refused(schema: RecordSchema, at: np.ndarray | int) -> None:
    records = records_from_columns(schema, "user", {"user_id": [1, 2]})
    with pytest.raises(ValueError, match=r"user: updated_at (has the shape \(1,\) for 2 records|-?\d+ is outside)"):
        stamp(schema, "user", records, at)


def as_format_1(value: bytes, stamp_at: int | None) -> bytes:
    """What the version before this one would have written: one stamp less."""
    header, body = bytearray(value[:24]), value[28:]
    header[2] = 1
    if stamp_at is not None:
        body = body[:stamp_at] + body[stamp_at + 8 :]
    return bytes(header) + crc32(body, crc32(header)).to_bytes(4, "little") + body


def test_values_of_the_format_before_are_read(schema: RecordSchema, make_events: Make) -> None:
    user = a_user(schema, make_events, 2, 1)
    for before, stamp_at in ((user, 0), (replace(user, attributes=None), None)):
        after = decode_user(schema, as_format_1(encode_user(schema, before), stamp_at))
        assert_same(after, replace(before, attributes_at=0))
    lives = records_from_columns(schema, "author", {"author_id": [7], "live_id": [1]})
    found, updated_at = decode_author(schema, as_format_1(encode_author(schema, lives, np.array([3]), 1), 0))
    np.testing.assert_array_equal(found, lives)
    assert updated_at.tolist() == [0]


def test_every_flipped_byte_and_every_cut_is_noticed(schema: RecordSchema, make_events: Make) -> None:
    value = encode_user(schema, a_user(schema, make_events, 2, 1))
    for position in range(len(value)):
        flipped = value[:position] + bytes([value[position] ^ 0x10]) + value[position + 1 :]
        for wrong in (flipped, value[:position]):
            with pytest.raises(CorruptRecord):
                decode_user(schema, wrong)
    with pytest.raises(CorruptRecord):
        decode_user(schema, value + b"\0")


def test_values_of_other_kinds_and_schema_versions_are_noticed(schema: RecordSchema, make_events: Make) -> None:
    value = encode_user(schema, a_user(schema, make_events, 1, 1))
    with pytest.raises(CorruptRecord, match="kind"):
        decode_author(schema, value)
    with pytest.raises(CorruptRecord, match="schema version 1, the store's is 2"):
        decode_user(schema.model_copy(update={"version": 2}), value)


def test_records_of_another_schema_are_refused(schema: RecordSchema, make_events: Make) -> None:
    user = UserRecord(None, make_events("live", 1), make_events("live", 1), 1)
    with pytest.raises(ValueError, match="video: "):
        encode_user(schema, user)
