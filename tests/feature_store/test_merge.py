"""The merge against a plain-Python reference, and its laws."""

from __future__ import annotations

import struct
from itertools import pairwise
from random import Random

import numpy as np
import pytest
from builders import author_updates, user_updates, views
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store.events.batch import EventBatch
from feature_store.merge import drop_erased, merge_attributes, merge_authors, merge_batch, merge_histories
from feature_store.records import UserBatch, pieces, records_from_columns
from feature_store.schema import MISSING, RecordSchema, default_schema, widen

LONG = default_schema().model_copy(update={"history_spare": 36})  # truncates nothing that is drawn here
SHORT = LONG.model_copy(update={"history_length": 3, "history_spare": 2})
NAMES = tuple(field.name for field in LONG.live)
Event = tuple[int | None, ...]  # in the order of NAMES

small = st.integers(0, 3)
EVENT = st.tuples(
    st.integers(-2, 5),  # view_id
    st.integers(0, 9) | st.sampled_from([-(2**52) + 1, 2**52 - 1]),  # event_time
    st.none() | small | st.just(2**31 - 1),  # known_after
    *[st.none() | small for _ in NAMES[3:-1]],
    st.none() | st.integers(0, 255),  # behaviours
)
EVENTS = st.lists(EVENT, max_size=12)


def to_records(events: list[Event]) -> np.ndarray:
    columns = zip(*events, strict=True) if events else [[] for _ in NAMES]
    return records_from_columns(LONG, "live", dict(zip(NAMES, map(list, columns), strict=True)))


def to_events(records: np.ndarray) -> list[Event]:
    columns = [widen(records[name]).tolist() for name in NAMES]
    return [tuple(None if value == MISSING else value for value in row) for row in zip(*columns, strict=True)]


def merged(events: list[Event], schema: RecordSchema = LONG) -> list[Event]:
    records, offsets = merge_histories(schema, "live", to_records(events), np.zeros(len(events), np.int64), 1)
    assert offsets.tolist() == [0, len(records)]
    return to_events(records)


def known(event: Event) -> int | None:
    start, after = event[1], event[2]
    return None if start is None or after is None else start + after


def join(a: Event, b: Event) -> Event:
    def most(*values: int | None) -> int | None:
        return max((value for value in values if value is not None), default=None)

    start, end = min(a[1] or 0, b[1] or 0), most(known(a), known(b))  # event_time is never None
    after = None if end is None else min(end - start, 2**31 - 1)
    bits = None if a[-1] is None and b[-1] is None else (a[-1] or 0) | (b[-1] or 0)
    return (a[0], start, after, *map(most, a[3:-1], b[3:-1]), bits)


def reference(events: list[Event], length: int, spare: int) -> list[Event]:
    views: dict[int | None, Event] = {}
    for event in events:
        views[event[0]] = join(views[event[0]], event) if event[0] in views else event
    done = sorted((e for e in views.values() if e[2] is not None), key=lambda e: (known(e), e[0]))
    in_progress = sorted((e for e in views.values() if e[2] is None), key=lambda e: (e[1], e[0]))
    return done[-length:] + in_progress[-spare:]


@given(EVENTS)
def test_equals_the_reference(events: list[Event]) -> None:
    assert merged(events) == reference(events, LONG.history_length, LONG.history_spare)
    assert merged(events, SHORT) == reference(events, 3, 2)


@given(EVENTS, EVENTS)
def test_commutative(a: list[Event], b: list[Event]) -> None:
    assert merged(a + b, SHORT) == merged(b + a, SHORT)


@given(EVENTS)
def test_idempotent(a: list[Event]) -> None:
    once = merged(a, SHORT)
    assert merged(once, SHORT) == merged(once + once, SHORT) == merged(a + a, SHORT) == once


@given(EVENTS, EVENTS, EVENTS)
def test_associative_where_nothing_is_truncated(a: list[Event], b: list[Event], c: list[Event]) -> None:
    assert merged(merged(a + b) + c) == merged(a + merged(b + c)) == merged(a + b + c)


@given(EVENTS, st.randoms(use_true_random=False))
def test_order_and_repetition_do_not_matter(events: list[Event], random: Random) -> None:
    delivered = events + random.choices(events, k=len(events)) if events else events
    random.shuffle(delivered)
    assert merged(delivered, SHORT) == merged(events, SHORT)


@settings(max_examples=50)
@given(st.lists(EVENTS, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_many_users_at_once_are_each_alone(histories: list[list[Event]], random: Random) -> None:
    rows = [(owner, event) for owner, events in enumerate(histories) for event in events]
    random.shuffle(rows)
    owners = np.array([owner for owner, _ in rows], np.int64)
    records, offsets = merge_histories(SHORT, "live", to_records([e for _, e in rows]), owners, len(histories))
    got = [to_events(records[start:stop]) for start, stop in pairwise(offsets.tolist())]
    assert got == [reference(events, 3, 2) for events in histories]


def test_a_merged_batch_is_taken_as_it_is_and_others_are_merged() -> None:
    rng = np.random.default_rng(3)
    views = rng.permutation(600)
    columns = {"view_id": views, "event_time": 10 * views, "known_after": np.where(views % 7, 5, MISSING)}
    events = records_from_columns(LONG, "video", columns)
    none = np.empty(0, LONG.dtype("live")), np.zeros(4, np.int64)
    once = merge_batch(LONG, UserBatch(np.arange(3), None, events, np.array([0, 200, 200, 600]), *none))
    assert once.user_ids.tolist() == [0, 2]  # of the second nothing is said
    assert np.diff(once.video_offsets).tolist() == [200 - 114, 86]
    again = merge_batch(LONG, once)
    assert again.video is once.video


@pytest.mark.parametrize(
    ("ids", "offsets", "message"),
    [
        ([1, 1], [0, 0, 0], "a user is named twice"),
        ([1, MISSING], [0, 0, 0], "user_ids: missing in row 1"),
        ([1, 2], [0, 0], "video_offsets: must be 3 values that ascend from 0 to 0"),
        ([1, 2], [0, 1, 0], "video_offsets"),
        ([1, 2], [0, 0, 1], "video_offsets"),
    ],
)
def test_batches_that_do_not_fit_are_refused(ids: list[int], offsets: list[int], message: str) -> None:
    video, live = np.empty(0, LONG.dtype("video")), np.empty(0, LONG.dtype("live"))
    batch = UserBatch(np.array(ids), None, video, np.array(offsets), live, np.zeros(3, np.int64))
    with pytest.raises(ValueError, match=message):
        merge_batch(LONG, batch)


def test_attributes_of_another_user_are_refused() -> None:
    attributes = records_from_columns(LONG, "user", {"user_id": [2]})
    video, live = np.empty(0, LONG.dtype("video")), np.empty(0, LONG.dtype("live"))
    batch = UserBatch(np.array([1]), attributes, video, np.zeros(2, np.int64), live, np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="attributes: "):
        merge_batch(LONG, batch)


def test_users_of_whom_nothing_is_said_are_left_out() -> None:
    events = to_records([(1, 1, *[None] * (len(NAMES) - 2)), (2, 2, *[None] * (len(NAMES) - 2))])
    none = np.empty(0, LONG.dtype("video")), np.zeros(4, np.int64)
    batch = merge_batch(LONG, UserBatch(np.array([5, 6, 7]), None, *none, events, np.array([0, 1, 1, 2])))
    assert (batch.user_ids.tolist(), batch.live_offsets.tolist()) == ([5, 7], [0, 1, 2])
    assert batch.video_offsets.tolist() == [0, 0, 0]


Room = tuple[int, int | None, int, int]  # author, live room, tag, when it was said
ROOMS = st.lists(st.tuples(small, st.none() | small, st.integers(-300, 300), small), max_size=20)


def stored_rooms(rooms: list[Room], schema: RecordSchema) -> dict[int, list[Room]]:
    columns = {name: [room[at] for room in rooms] for at, name in enumerate(("author_id", "live_id", "tag"))}
    records = records_from_columns(schema, "author", columns)
    ids, stamped, offsets = merge_authors(schema, records, np.array([room[3] for room in rooms], np.int64))
    found: dict[int, list[Room]] = {}
    for author, (start, stop) in zip(ids.tolist(), pairwise(offsets.tolist()), strict=True):
        for at, (_, live, tag, _) in stamped[start:stop].tolist():
            found.setdefault(author, []).append((author, None if live == MISSING else live, tag, at))
    return found


def reference_rooms(rooms: list[Room]) -> dict[int, list[Room]]:
    """Of each room what was said last, then of greatest bytes; of each author the two newest."""
    kept: dict[tuple[int, int | None], Room] = {}
    for room in rooms:
        kept[room[:2]] = max(kept.get(room[:2], room), room, key=lambda r: (r[3], struct.pack("<h", r[2])))
    authors: dict[int, list[Room]] = {}
    for room in sorted(kept.values(), key=lambda r: (r[3], MISSING if r[1] is None else r[1])):
        authors[room[0]] = [*authors.get(room[0], []), room][-2:]
    return authors


@given(ROOMS, ROOMS)
def test_authors_keep_what_was_said_last(a: list[Room], b: list[Room]) -> None:
    schema = LONG.model_copy(update={"author_lives": 2})
    merged_a = stored_rooms(a, schema)
    assert merged_a == reference_rooms(a)
    assert stored_rooms(b + a, schema) == stored_rooms(a + b + a, schema) == reference_rooms(a + b)
    of_a = [room for rooms in merged_a.values() for room in rooms]
    assert stored_rooms(of_a + b, schema) == reference_rooms(a + b)


@given(st.lists(st.tuples(small, small, st.none() | st.integers(-128 + 1, 127)), max_size=20))
def test_attributes_said_last_stay(said: list[tuple[int, int, int | None]]) -> None:
    columns = {"user_id": [user for user, _, _ in said], "activity_group": [group for _, _, group in said]}
    records = records_from_columns(LONG, "user", columns)
    owners, times = np.array([row[0] for row in said], np.int64), np.array([row[1] for row in said], np.int64)
    stamped, offsets = merge_attributes(LONG, records, times, owners, 4)
    got = {user: rows.tolist() for user, rows in enumerate(pieces(stamped, offsets)) if len(rows)}
    expected: dict[int, tuple[int, bytes]] = {}
    for user, at, group in said:
        told = at, struct.pack("<qb", user, -128 if group is None else group)
        expected[user] = max(expected.get(user, told), told)
    assert got == {user: [(at, struct.unpack("<qb", raw))] for user, (at, raw) in expected.items()}


def test_a_missing_author_is_refused() -> None:
    records = np.zeros(2, LONG.dtype("author"))
    records["author_id"] = [1, MISSING]
    with pytest.raises(ValueError, match=r"author\.author_id: missing in row 1"):
        merge_authors(LONG, records, 0)


@given(st.dictionaries(st.integers(-3, 5), small), st.lists(st.tuples(small, small), max_size=12))
def test_what_is_not_newer_than_an_erasure_is_dropped(erased: dict[int, int], rows: list[tuple[int, int]]) -> None:
    users, times = [user for user, _ in rows], [at for _, at in rows]
    parts = [
        views(LONG, "video", users, view_id=users, event_time=times),
        views(LONG, "live", users, view_id=users, event_time=times),
        user_updates(LONG, times, user_id=users),
        author_updates(LONG, times, author_id=users),
    ]
    kept = drop_erased(EventBatch.concat(parts), erased)
    expected = [(user, at) for user, at in rows if user not in erased or at > erased[user]]
    assert list(zip(kept.video_users.tolist(), kept.video["event_time"].tolist(), strict=True)) == expected
    assert list(zip(kept.live_users.tolist(), kept.live["event_time"].tolist(), strict=True)) == expected
    assert list(zip(kept.users["user_id"].tolist(), kept.users_at.tolist(), strict=True)) == expected
    assert len(kept.authors) == len(kept.authors_at) == len(rows)


def test_a_merged_load_is_told_though_users_number_their_views_alike() -> None:
    schema = default_schema()
    columns = {"view_id": [1, 2, 1, 2], "event_time": [10, 20, 10, 20], "known_after": [1, 1, 1, 1]}
    events = records_from_columns(schema, "video", columns)
    merged, _ = merge_histories(schema, "video", events, np.array([0, 0, 1, 1]), 2)
    assert merged is events
    joined, _ = merge_histories(schema, "video", events, np.array([0, 0, 0, 0]), 1)
    assert joined["view_id"].tolist() == [1, 2]
