from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from feature_store.events.batch import EventBatch, EventBatchError
from feature_store.records import records_from_columns
from feature_store.schema import RecordSchema, widen

Make = Callable[..., np.ndarray]


@pytest.fixture
def batch(schema: RecordSchema, make_events: Make) -> EventBatch:
    """300 video views of users 0..299, 7 live views, 40 author updates, 3 user updates."""
    authors = {"author_id": np.arange(40), "live_id": 2**60 + np.arange(40), "tag": [1] * 40}
    return EventBatch(
        np.arange(300),
        make_events("video", 300),
        np.full(7, -(2**63) + 1),
        make_events("live", 7),
        records_from_columns(schema, "author", authors),
        np.arange(40) + 5,
        records_from_columns(schema, "user", {"user_id": [1, 2, 2**63 - 1], "activity_group": [None, 0, 3]}),
        np.array([7, 8, 9]),
    )


def assert_same(one: EventBatch, other: EventBatch) -> None:
    for left, right in zip(one.columns(), other.columns(), strict=True):
        np.testing.assert_array_equal(left, right)
        assert left.dtype == right.dtype


def rows_of(batch: EventBatch) -> list[set[bytes]]:
    """Every event of each kind with whom it is of, without order."""
    kinds = ("video_users", "video"), ("live_users", "live"), ("authors_at", "authors"), ("users_at", "users")
    return [
        {owner.tobytes() + record.tobytes() for owner, record in zip(getattr(batch, a), getattr(batch, b), strict=True)}
        for a, b in kinds
    ]


def test_what_is_written_is_read(schema: RecordSchema, batch: EventBatch) -> None:
    assert len(batch) == 350
    assert_same(EventBatch.from_bytes(schema, batch.to_bytes(schema)), batch)
    nothing = EventBatch.empty(schema)
    assert len(nothing) == 0
    assert_same(EventBatch.from_bytes(schema, nothing.to_bytes(schema)), nothing)


def test_a_byte_that_changed_is_noticed(schema: RecordSchema, batch: EventBatch) -> None:
    value = batch.to_bytes(schema)
    for at in (5, 12, 40, len(value) // 2, len(value) - 1):
        changed = value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :]
        with pytest.raises(EventBatchError, match=r"checksum|format|length"):
            EventBatch.from_bytes(schema, changed)


def test_what_is_wrong_is_named(schema: RecordSchema, batch: EventBatch) -> None:
    value = batch.to_bytes(schema)
    with pytest.raises(EventBatchError, match="3 bytes are less than a header"):
        EventBatch.from_bytes(schema, b"abc")
    with pytest.raises(EventBatchError, match="kind b'XX' format 1"):
        EventBatch.from_bytes(schema, b"XX" + value[2:])
    with pytest.raises(EventBatchError, match="checksum"):
        EventBatch.from_bytes(schema, value[:-1])
    other = schema.model_copy(update={"version": 2})
    with pytest.raises(EventBatchError, match="written under schema farm-default 1, expected farm-default 2"):
        EventBatch.from_bytes(other, value)
    wider = RecordSchema.model_validate({**schema.model_dump(), "video": schema.live})
    with pytest.raises(EventBatchError, match="length"):
        EventBatch.from_bytes(wider, value)
    with pytest.raises(ValueError, match="video"):
        batch.to_bytes(wider)


def test_concat_keeps_all_in_order(schema: RecordSchema, batch: EventBatch) -> None:
    assert EventBatch.concat([batch]) is batch
    joined = EventBatch.concat([batch, EventBatch.empty(schema), batch])
    assert len(joined) == 700
    np.testing.assert_array_equal(joined.video_users, np.tile(np.arange(300), 2))
    assert_same(joined.select(video=slice(300), live=slice(7), authors=slice(40), users=slice(3)), batch)


def test_partitions_split_the_batch_by_owner(batch: EventBatch) -> None:
    parts = batch.by_partition(8)
    assert sorted(parts) == list(range(8))
    for kind, whole in enumerate(rows_of(batch)):
        shares = [rows_of(part)[kind] for part in parts.values()]
        assert sum(map(len, shares)) == len(whole)
        assert set().union(*shares) == whole
    live_users = [len(part.live) for part in parts.values() if len(part.live)]
    assert live_users == [7], "the events of one user are in one partition"
    assert max(len(part.video) for part in parts.values()) < 2 * 300 / 8


def test_ids_that_share_low_bits_are_spread(schema: RecordSchema, make_events: Make) -> None:
    none = EventBatch.empty(schema)
    users = np.arange(4000) * 4096
    batch = EventBatch(users, make_events("video", 4000), *none.columns()[2:])
    sizes = [len(part) for part in batch.by_partition(8).values()]
    assert len(sizes) == 8
    assert min(sizes) > 400


def test_a_partition_is_the_same_in_every_release(schema: RecordSchema, make_events: Make) -> None:
    """SplitMix64's finaliser in Python's integers."""

    def expected(user: int) -> int:
        mask = 2**64 - 1
        mixed = user & mask
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & mask
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & mask
        return (mixed ^ (mixed >> 31)) % 5

    users = [0, 1, -1, 2**63 - 1, -(2**63) + 1, 12_345]
    none = EventBatch.empty(schema)
    batch = EventBatch(np.array(users), make_events("video", len(users)), *none.columns()[2:])
    found = {int(user): partition for partition, part in batch.by_partition(5).items() for user in part.video_users}
    assert found == {user: expected(user) for user in users}


def test_one_partition_and_no_events(schema: RecordSchema, batch: EventBatch) -> None:
    assert batch.by_partition(1) == {0: batch}
    assert EventBatch.empty(schema).by_partition(8) == {}


def test_without_a_user(batch: EventBatch) -> None:
    rest = batch.without_user(2)
    assert 2 not in rest.video_users
    assert 2 not in widen(rest.users["user_id"])
    assert (len(rest.video), len(rest.live), len(rest.authors), len(rest.users)) == (299, 7, 40, 2)
    assert len(batch.without_user(-(2**63) + 1).live) == 0
