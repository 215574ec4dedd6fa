"""Materialize: the histories and attributes of PREPARED into a feature store, so that the service can read them.

Letters: U users, E events.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from feature_store.records import UserBatch
from feature_store.schema import Domain
from feature_store.store import FeatureStore, open_store
from model.datasets.prepared import Columns, Prepared

USERS_AT_ONCE = 5_000
AUTHORS_AT_ONCE = 50_000


@dataclass(frozen=True)
class Materialized:
    """What was written."""

    users: int
    events: dict[Domain, int]
    lives: int


async def materialize(data: Prepared, url: str, progress: Callable[[int, int], None] | None = None) -> Materialized:
    """Write every user and author of PREPARED into the store at `url`, which is made when there is none.

    progress: called with users done and users in all.  Raises StoreError (SchemaMismatch when the store holds records
    of another schema).
    """
    async with open_store(url, data.schema, create=True) as store:
        users = len(data.user_ids())
        for start in range(0, users, USERS_AT_ONCE):
            stop = min(start + USERS_AT_ONCE, users)
            await store.put_users(_users(data, start, stop))
            if progress is not None:
                progress(stop, users)
        await _put_authors(data, store)
    return Materialized(users, {d: len(e) for d, e in data.events.items()}, len(data.authors["author_id"]))


def _users(data: Prepared, start: int, stop: int) -> UserBatch:
    """User rows start..stop-1 with the newest events that a store keeps of each."""
    video, video_offsets = _histories(data, "video", start, stop)
    live, live_offsets = _histories(data, "live", start, stop)
    attributes = _records(data, "user", data.users, slice(start, stop))
    return UserBatch(np.asarray(data.user_ids()[start:stop]), attributes, video, video_offsets, live, live_offsets)


def _histories(data: Prepared, domain: Domain, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Events are sorted by (user, known_at): a user's newest are its last.  -> records [E], offsets [U + 1]"""
    events = data.events[domain]
    bounds = events.offsets[start : stop + 1]
    sizes = np.minimum(np.diff(bounds), data.schema.history_length)  # [U]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    index = np.arange(offsets[-1]) + np.repeat(bounds[1:] - sizes - offsets[:-1], sizes)
    return _records(data, domain, events.columns, index), offsets


def _records(data: Prepared, record: str, columns: Columns, index: np.ndarray | slice) -> np.ndarray:
    """Rows of flat columns as packed records: the dtypes are the same."""
    names = [field.name for field in data.schema.fields(record)]
    first = columns[names[0]][index]
    records = np.empty(len(first), data.schema.dtype(record))
    for name in names:
        records[name] = columns[name][index]
    return records


async def _put_authors(data: Prepared, store: FeatureStore) -> None:
    total = len(data.authors["author_id"])
    for start in range(0, total, AUTHORS_AT_ONCE):
        await store.put_authors(_records(data, "author", data.authors, slice(start, start + AUTHORS_AT_ONCE)))
