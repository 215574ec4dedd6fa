"""How events join a history, attributes a user and live rooms an author: pure, for many users at once.

Every merge is commutative and idempotent, so order and repetition of delivery do not matter.  That of events is
associative as long as nothing is truncated, the others always.  Letters: U users, A authors, E records.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from feature_store.events.batch import EventBatch
from feature_store.records import Pieces, UserBatch, known_at, known_users, require_dtype, stamp
from feature_store.schema import MISSING, Domain, RecordSchema, widen

_MIX = np.uint64(0x9E3779B97F4A7C15)  # odd and without a pattern: Knuth's multiplicative hashing


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
    """The batch with its events merged to histories, without users of whom nothing is said.

    ValueError when its parts do not fit together.
    """
    ids = known_users(batch.user_ids)
    if len(np.unique(ids)) != len(ids):
        raise ValueError("user_ids: a user is named twice")
    if batch.attributes is not None:
        require_dtype(schema, "user", batch.attributes)
        if not np.array_equal(widen(batch.attributes["user_id"]), ids):
            raise ValueError("attributes: the user_id of a record is not the one of its row in user_ids")
    video = merge_histories(schema, "video", batch.video, *_owners("video", batch.video, batch.video_offsets, len(ids)))
    live = merge_histories(schema, "live", batch.live, *_owners("live", batch.live, batch.live_offsets, len(ids)))
    return _told(UserBatch(ids, batch.attributes, *video, *live))


def merge_users(schema: RecordSchema, events: EventBatch) -> tuple[np.ndarray, Pieces, Pieces, Pieces]:
    """The users that events and attributes are of, each merged.

    Returns user ids [U] ascending, and of each its stamped attributes (0 or 1), video and live history.
    """
    owners_of = (events.video_users, events.live_users, widen(events.users["user_id"]))
    ids, owners = np.unique(known_users(np.concatenate(owners_of)), return_inverse=True)
    video, live, said = np.split(owners, np.cumsum([len(events.video), len(events.live)]))
    return (
        ids,
        merge_attributes(schema, events.users, events.users_at, said, len(ids)),
        merge_histories(schema, "video", events.video, video, len(ids)),
        merge_histories(schema, "live", events.live, live, len(ids)),
    )


def merge_attributes(
    schema: RecordSchema, records: np.ndarray, updated_at: np.ndarray | int, owners: np.ndarray, users: int
) -> Pieces:
    """Of each user the attributes with the greatest (updated_at, bytes): stamped records and offsets [users + 1].

    records: [E] records "user";  updated_at: [E] ms since 1970, or one for all;  owners: [E] 0..users-1.
    """
    stamped = stamp(schema, "user", records, updated_at)
    order = np.lexsort((_bytes(records), stamped["at"], owners))
    order = order[_last(owners[order])]
    return stamped[order], _offsets(owners[order], users)


def merge_authors(
    schema: RecordSchema, records: np.ndarray, updated_at: np.ndarray | int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Author records to the newest `author_lives` live rooms of each author, in order (updated_at, live_id).

    Of one live room the record with the greatest (updated_at, bytes) stays.

    records: [E] records "author";  updated_at: [E] ms since 1970, or one for all;  returns author ids [A] ascending,
    stamped records [E'], offsets [A + 1].
    """
    stamped = stamp(schema, "author", records, updated_at)
    authors, lives = widen(records["author_id"]), widen(records["live_id"])
    if (missing := authors == MISSING).any():
        raise ValueError(f"author.author_id: missing in row {int(missing.argmax())}, and it is a key")
    ids, owners = np.unique(authors, return_inverse=True)
    order = np.lexsort((_bytes(records), stamped["at"], lives, owners))
    order = order[_last(owners[order], lives[order])]
    order = order[np.lexsort((lives[order], stamped["at"][order], owners[order]))]
    order = order[_newest(owners[order], np.full(len(ids), schema.author_lives))]
    return ids, stamped[order], _offsets(owners[order], len(ids))


def users_times(batch: UserBatch, updated_at: np.ndarray | int) -> np.ndarray:
    """When the attributes of each user were said: [U] int64 from [U] or one for all."""
    times = np.asarray(updated_at, np.int64)
    if times.shape not in ((), batch.user_ids.shape):
        raise ValueError(f"updated_at has the shape {times.shape} for {len(batch.user_ids)} users")
    return np.broadcast_to(times, batch.user_ids.shape)


def as_events(schema: RecordSchema, batch: UserBatch, times: np.ndarray) -> EventBatch:
    """A batch of users, or a part of one, as the events that say the same.  times: [U], of the attributes."""
    ids = known_users(batch.user_ids)
    empty = EventBatch.empty(schema)
    users = empty.users if batch.attributes is None else batch.attributes
    video, live = (
        (np.repeat(ids, np.diff(offsets)), events[offsets[0] : offsets[-1]])
        for events, offsets in ((batch.video, batch.video_offsets), (batch.live, batch.live_offsets))
    )
    return EventBatch(*video, *live, empty.authors, empty.authors_at, users, times[: len(users)])


def users_of(events: EventBatch) -> np.ndarray:
    """Ids of the users that events are of, ascending, each once.  [U]"""
    return np.unique(np.concatenate((events.video_users, events.live_users, widen(events.users["user_id"]))))


def require_events(schema: RecordSchema, batch: EventBatch) -> None:
    """ValueError unless all parts are of the schema and fit together, and no user is missing."""
    require_dtype(schema, "video", batch.video)
    require_dtype(schema, "live", batch.live)
    stamp(schema, "author", batch.authors, batch.authors_at)
    stamp(schema, "user", batch.users, batch.users_at)
    for domain, users, events in (("video", batch.video_users, batch.video), ("live", batch.live_users, batch.live)):
        if len(known_users(users)) != len(events):
            raise ValueError(f"{domain}: {len(users)} user ids for {len(events)} events")
    known_users(widen(batch.users["user_id"]))


def drop_erased(batch: EventBatch, erased_until: Mapping[int, int]) -> EventBatch:
    """The events but those of erased users that are not newer than the erasure; what is said of authors stays.

    erased_until: ms since 1970 by user id.
    """
    if not erased_until:
        return batch
    erased = np.array(sorted(erased_until.items()), np.int64)
    video = _is_newer(batch.video_users, batch.video["event_time"], erased)
    live = _is_newer(batch.live_users, batch.live["event_time"], erased)
    users = _is_newer(widen(batch.users["user_id"]), batch.users_at, erased)
    return batch.select(video=video, live=live, users=users)


def _told(batch: UserBatch) -> UserBatch:
    """The batch without users of whom nothing is said."""
    if batch.attributes is not None:
        return batch
    told = (np.diff(batch.video_offsets) > 0) | (np.diff(batch.live_offsets) > 0)
    if told.all():
        return batch
    offsets = (np.append(0, offsets[1:][told]) for offsets in (batch.video_offsets, batch.live_offsets))
    return UserBatch(batch.user_ids[told], None, batch.video, next(offsets), batch.live, next(offsets))


def _is_newer(owners: np.ndarray, times: np.ndarray, erased: np.ndarray) -> np.ndarray:
    """Which of what users did or said is newer than their erasure.  erased: [X, 2] id ascending, time;  [E] bool"""
    rows = np.searchsorted(erased[:, 0], owners).clip(max=len(erased) - 1)
    newer: np.ndarray = (erased[rows, 0] != owners) | (times > erased[rows, 1])
    return newer


def _bytes(records: np.ndarray) -> np.ndarray:
    """The bytes of each record, to be sorted by: [E] S"""
    return np.ascontiguousarray(records).view(f"S{records.dtype.itemsize}")


def _last(*keys: np.ndarray) -> np.ndarray:
    """Which of the elements, ordered by the keys, are the last of their equals.  [E] bool"""
    last = np.ones(len(keys[0]), bool)
    last[:-1] = np.logical_or.reduce([key[1:] != key[:-1] for key in keys])
    return last


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
    # Equal for equals; that others meet is so rare that it costs nothing, and it does no harm.
    views = np.sort(view_id.astype(np.uint64) ^ (owners.astype(np.uint64) * _MIX))
    if (views[1:] == views[:-1]).any():
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
