"""What is kept of users: how much, for how long, who goes first."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from feature_store.reading.last_good import ENTRY_BYTES, LastGood
from feature_store.records import UserRecord, decode_user, empty_user, encode_user, records_from_columns
from feature_store.schema import RecordSchema


@pytest.fixture
def user(schema: RecordSchema) -> UserRecord:
    return empty_user(schema)


def test_a_record_is_given_until_it_is_too_old(user: UserRecord) -> None:
    kept = LastGood(10_000_000, age_s=60.0)
    kept.put(7, user, 100.0)
    found = kept.get(7, 160.0)
    assert found is not None
    assert (found.user is user, found.read_at) == (True, 100.0)
    assert kept.get(8, 100.0) is None
    assert kept.get(7, 160.001) is None
    assert (len(kept), kept.size) == (0, 0)


def test_the_oldest_go_when_there_is_no_room(user: UserRecord) -> None:
    kept = LastGood(3 * ENTRY_BYTES, age_s=60.0)
    for number, now in ((1, 1.0), (2, 2.0), (3, 3.0), (1, 4.0), (4, 5.0)):
        kept.put(number, user, now)
    assert [kept.get(number, 5.0) is not None for number in (1, 2, 3, 4)] == [True, False, True, True]
    assert (len(kept), kept.size) == (3, 3 * ENTRY_BYTES)


def test_the_too_old_leave_when_others_come(user: UserRecord) -> None:
    kept = LastGood(10_000_000, age_s=60.0)
    for number in range(5):
        kept.put(number, user, float(number))
    kept.put(9, user, 63.0)
    assert (len(kept), kept.size) == (3, 3 * ENTRY_BYTES)  # those of 3.0, 4.0 and 63.0


def test_who_is_forgotten_is_gone(user: UserRecord) -> None:
    kept = LastGood(10_000_000, age_s=60.0)
    kept.put(7, user, 0.0)
    kept.forget(7)
    kept.forget(7)
    assert (kept.get(7, 0.0), len(kept), kept.size) == (None, 0, 0)


@pytest.mark.parametrize("limit", [0, ENTRY_BYTES - 1])
def test_what_is_greater_than_all_room_is_not_kept(user: UserRecord, limit: int) -> None:
    kept = LastGood(limit, age_s=60.0)
    kept.put(7, user, 0.0)
    assert (kept.get(7, 0.0), kept.size) == (None, 0)


def test_its_size_is_the_memory_that_it_uses(schema: RecordSchema, make_events: Callable[..., np.ndarray]) -> None:
    attributes = records_from_columns(schema, "user", {"user_id": [1], "activity_group": [1]})[0]
    value = encode_user(schema, UserRecord(attributes, make_events("video", 40), make_events("live", 30), 10**9))
    kept = LastGood(10**9, age_s=60.0)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for number in range(10**6, 10**6 + 3000):
        kept.put(number, decode_user(schema, value), 0.0)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept.size == pytest.approx(after - before, rel=0.1)
