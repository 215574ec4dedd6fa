"""How events join a history, and live rooms an author: pure, for many users at once.

The merge of events is commutative and idempotent, so order and repetition of delivery do not matter; it is associative
as long as nothing is truncated.  Letters: U users, A authors, E records.
"""

from __future__ import annotations

import numpy as np

from feature_store.records import UserBatch, known_at, known_users, require_dtype
from feature_store.schema import MISSING, Domain, RecordSchema, widen


def merge_histories(
    schema: RecordSchema, domain: Domain, events: np.ndarray, owners: np.ndarray, users: int
) -> tuple[np.ndarray, np.ndarray]:
    """Events of U users, in any order and number, to their histories.

    Records of one view join.  A history is the newest `history_length` known views in order (known_at, view_id), then
    the newest `history_spare` views in progress in order (event_time, view_id).

    events: [E] records of `domain`;  owners: [E] 0..users-1;  returns records [E'] and offsets [users + 1].
    """
    require_dtype(schema, domain, events)
    if not _is_merged(schema, events, owners, users):
        events, owners = _join(events, owners)
        group, time = _order_keys(events, owners)
        order = np.lexsort((events["view_id"], time, group))
        order = order[_newest(group[order], _limits(schema, users))]
        events, owners = events[order], owners[order]
    return events, _offsets(owners, users)


def merge_batch(schema: RecordSchema, batch: UserBatch) -> UserBatch:
    """The batch with its events merged to histories.  ValueError when its parts do not fit together."""
    ids = known_users(batch.user_ids)
    if len(np.unique(ids)) != len(ids):
        raise ValueError("user_ids: a user is named twice")
    if batch.attributes is not None:
        require_dtype(schema, "user", batch.attributes)
        if not np.array_equal(widen(batch.attributes["user_id"]), ids):
            raise ValueError("attributes: the user_id of a record is not the one of its row in user_ids")
    video = merge_histories(schema, "video", batch.video, *_owners("video", batch.video, batch.video_offsets, len(ids)))
    live = merge_histories(schema, "live", batch.live, *_owners("live", batch.live, batch.live_offsets, len(ids)))
    return UserBatch(ids, batch.attributes, *video, *live)


def merge_authors(schema: RecordSchema, records: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Author records in order of arrival, to the newest `author_lives` live rooms of each author.

    A later record of one live room replaces the earlier one.

    records: [E] records "author";  returns author ids [A] ascending, records [E'], offsets [A + 1], newest last.
    """
    ids, owners = np.unique(widen(records["author_id"]), return_inverse=True)
    lives = widen(records["live_id"])
    order = np.lexsort((lives, owners))  # stable, so arrival stays the last key
    last = np.ones(len(order), bool)
    last[:-1] = (np.diff(owners[order]) != 0) | (np.diff(lives[order]) != 0)
    kept = np.sort(order[last])
    kept = kept[np.argsort(owners[kept], kind="stable")]
    kept = kept[_newest(owners[kept], np.full(len(ids), schema.author_lives))]
    return ids, records[kept], _offsets(owners[kept], len(ids))


def _join(events: np.ndarray, owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One record per owner and view, in order of both."""
    order = np.lexsort((events["view_id"], owners))
    events, owners = events[order], owners[order]
    first = np.ones(len(events), bool)
    first[1:] = (owners[1:] != owners[:-1]) | (events["view_id"][1:] != events["view_id"][:-1])
    if first.all():
        return events, owners
    starts = np.flatnonzero(first)
    joined = np.empty(len(starts), events.dtype)
    for name in events.dtype.names or ():  # a missing value is the least of its dtype, so the maximum is never it
        joined[name] = np.maximum.reduceat(events[name], starts)
    joined["event_time"] = np.minimum.reduceat(events["event_time"], starts)
    joined["known_after"] = _join_known_after(events, joined["event_time"], starts)
    if "behaviours" in joined.dtype.names:
        joined["behaviours"] = _join_bits(events["behaviours"], starts)
    return joined, owners[starts]


def _join_known_after(events: np.ndarray, event_time: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The latest known_at after the earliest start, or as late as the dtype can say."""
    limits = np.iinfo(events["known_after"].dtype)
    known = np.maximum.reduceat(known_at(events), starts)
    after = np.where(known == MISSING, 0, known) - event_time
    return np.where(known == MISSING, limits.min, np.minimum(after, limits.max))


def _join_bits(bits: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """OR of what is known; missing where nothing is."""
    missing = bits == np.iinfo(bits.dtype).min
    either = np.bitwise_or.reduceat(np.where(missing, 0, bits), starts)
    return np.where(np.logical_and.reduceat(missing, starts), np.iinfo(bits.dtype).min, either)


def _order_keys(events: np.ndarray, owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Group [E], 2 * owner + in progress, and the time [E] that orders a group."""
    known = known_at(events)
    in_progress = known == MISSING
    return 2 * owners.astype(np.int64) + in_progress, np.where(in_progress, events["event_time"], known)


def _limits(schema: RecordSchema, users: int) -> np.ndarray:
    """How many views each group keeps.  [2 * users]"""
    return np.tile(np.array([schema.history_length, schema.history_spare]), users)


def _newest(group: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Which of the elements, ordered by group, are among the last limits[group] of theirs.  [E] bool"""
    ends = np.cumsum(np.bincount(group, minlength=len(limits)))
    keep: np.ndarray = ends[group] - np.arange(len(group)) <= limits[group]
    return keep


def _is_merged(schema: RecordSchema, events: np.ndarray, owners: np.ndarray, users: int) -> bool:
    """Whether merging would change nothing; told cheaply, because it is the common case of a bulk load."""
    view_id = events["view_id"]
    ordered_ids = np.sort(view_id)
    if (ordered_ids[1:] == ordered_ids[:-1]).any():  # perhaps of two users, but that is not worth telling apart
        return False
    group, time = _order_keys(events, owners)
    later = (group[1:] == group[:-1]) & (
        (time[1:] > time[:-1]) | (time[1:] == time[:-1]) & (view_id[1:] > view_id[:-1])
    )
    if not ((group[1:] > group[:-1]) | later).all():
        return False
    return bool((np.bincount(group, minlength=2 * users) <= _limits(schema, users)).all())


def _owners(domain: Domain, events: np.ndarray, offsets: np.ndarray, users: int) -> tuple[np.ndarray, int]:
    """The user's row of each event, and how many users."""
    counts = np.diff(offsets)
    if len(counts) != users or offsets[0] != 0 or offsets[-1] != len(events) or (counts < 0).any():
        raise ValueError(f"{domain}_offsets: must be {users + 1} values that ascend from 0 to {len(events)}")
    return np.repeat(np.arange(users), counts), users


def _offsets(owners: np.ndarray, count: int) -> np.ndarray:
    """Where each owner's records start, in records ordered by owner.  [count + 1]"""
    return np.concatenate(([0], np.cumsum(np.bincount(owners, minlength=count))))
