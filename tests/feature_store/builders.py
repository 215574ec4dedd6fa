"""Batches in few words, for tests of stores.  Columns are as `records_from_columns` takes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from feature_store.events.batch import EventBatch
from feature_store.records import UserBatch, records_from_columns
from feature_store.schema import Domain, RecordSchema
from feature_store.store import FeatureStore

START_MS = 1_700_000_000_000
BACKENDS = ("lmdb", "redis", "sentinel", "cluster")
OpenBackend = Callable[..., FeatureStore]


def views(schema: RecordSchema, domain: Domain, users: Sequence[int], **columns: object) -> EventBatch:
    """Views of users, a row each."""
    records = records_from_columns(schema, domain, columns)
    owners = np.array(users, np.int64)
    empty = EventBatch.empty(schema)
    if domain == "video":
        return replace(empty, video_users=owners, video=records)
    return replace(empty, live_users=owners, live=records)


def author_updates(schema: RecordSchema, at: Sequence[int], **columns: object) -> EventBatch:
    records = records_from_columns(schema, "author", columns)
    return replace(EventBatch.empty(schema), authors=records, authors_at=np.array(at, np.int64))


def user_updates(schema: RecordSchema, at: Sequence[int], **columns: object) -> EventBatch:
    records = records_from_columns(schema, "user", columns)
    return replace(EventBatch.empty(schema), users=records, users_at=np.array(at, np.int64))


def users_of_events(
    schema: RecordSchema, ids: Sequence[int], video: np.ndarray, live: np.ndarray, attributes: bool = True
) -> UserBatch:
    """Users with equal shares of the events, in their order; their activity_group is 1."""
    columns = {"user_id": np.array(ids, np.int64), "activity_group": [1] * len(ids)}
    own = records_from_columns(schema, "user", columns) if attributes else None
    shares = np.arange(len(ids) + 1)
    return UserBatch(
        np.array(ids, np.int64),
        own,
        video,
        shares * (len(video) // len(ids)),
        live,
        shares * (len(live) // len(ids)),
    )
