"""What `farm bench store` stores and sends, from a seed: full histories, live rooms, and events of Zipf-like traffic.

Letters: U users, A authors, E events.
"""

from __future__ import annotations

import numpy as np

from feature_store.events.batch import EventBatch
from feature_store.records import UserBatch, records_from_columns
from feature_store.schema import DOMAINS, Domain, RecordSchema

BATCH_USERS = 5_000  # as `farm materialize` loads them
ZIPF_EXPONENT = 1.0  # of the users that events are of
LIVE_SHARE = 0.1  # of a request's events
AUTHOR_SHARE = 0.02
LATER_SHARE = 0.2  # of a request's views: later acts of views of the request before it
LATER_MS = 40_000

START_MS = 1_760_000_000_000  # histories end here, and traffic begins
STEP_MS = 60_000  # between requests, so that later acts are known before the views of the next one

_HOUR_MS = 3_600_000
_FIRST_USER, _FIRST_AUTHOR, _FIRST_LIVE, _FIRST_VIEW = 10**9, 10**8, 10**12, 10**16


def user_ids(users: int) -> np.ndarray:
    """[U] int64, ten digits each."""
    return _FIRST_USER + 7_919 * np.arange(users)


def author_ids(authors: int) -> np.ndarray:
    """[A] int64"""
    return _FIRST_AUTHOR + 101 * np.arange(authors)


def user_batches(schema: RecordSchema, users: int, seed: int) -> list[UserBatch]:
    """All users with attributes and both histories full, an event an hour up to START_MS, merged.

    Views are numbered for each user, as the simulator does.
    """
    rng = np.random.default_rng(seed)
    ids = user_ids(users)
    return [_user_batch(schema, ids[start : start + BATCH_USERS], rng) for start in range(0, users, BATCH_USERS)]


def author_records(schema: RecordSchema, authors: int) -> np.ndarray:
    """One live room of each author: records "author" [A]."""
    number = np.arange(authors)
    columns = {"author_id": author_ids(authors), "live_id": _FIRST_LIVE + number, "tag": number % 40}
    return records_from_columns(schema, "author", columns)


class Traffic:
    """Requests of events, one after another: video and live views, later acts of earlier views, author updates.

    The users of views follow Zipf's law.
    """

    def __init__(self, schema: RecordSchema, users: int, authors: int, seed: int) -> None:
        self._schema, self._rng = schema, np.random.default_rng(seed)
        self._users = self._rng.permutation(user_ids(users))  # by popularity
        popularity = np.cumsum(np.arange(1, users + 1) ** -ZIPF_EXPONENT)
        self._popularity = popularity / popularity[-1]  # [U]
        self._authors = author_records(schema, authors)
        self._view, self._now_ms = _FIRST_VIEW, START_MS
        self._before: dict[Domain, tuple[np.ndarray, np.ndarray]] = {
            domain: (np.empty(0, np.int64), np.empty(0, schema.dtype(domain))) for domain in DOMAINS
        }

    def requests(self, count: int, events: int) -> list[EventBatch]:
        """`count` requests of `events` each."""
        return [self.request(events) for _ in range(count)]

    def request(self, events: int) -> EventBatch:
        """The last views of each domain are new, and the newest of all."""
        self._now_ms += STEP_MS
        live, authors = int(events * LIVE_SHARE), int(events * AUTHOR_SHARE)
        video_views = self._views("video", events - live - authors)
        live_views = self._views("live", live)
        updates = self._authors[self._rng.integers(0, len(self._authors), authors)]
        empty = EventBatch.empty(self._schema)
        at = np.full(authors, self._now_ms)
        return EventBatch(*video_views, *live_views, updates, at, empty.users, empty.users_at)

    def _views(self, domain: Domain, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Users [E] and records [E]."""
        later_users, later = (column[: int(count * LATER_SHARE)].copy() for column in self._before[domain])
        later["known_after"] += LATER_MS
        later["behaviours"] |= 1 << self._schema.behaviours.index("like")
        new = count - len(later)
        users = self._users[np.searchsorted(self._popularity, self._rng.random(new))]
        known_after = self._rng.integers(500, 60_000, new)
        view_id = self._view + np.arange(new)
        records = _views(self._schema, domain, view_id, self._now_ms - known_after, known_after, self._rng)
        self._view += new
        self._before[domain] = users, records
        return np.concatenate([later_users, users]), np.concatenate([later, records])


def _user_batch(schema: RecordSchema, ids: np.ndarray, rng: np.random.Generator) -> UserBatch:
    length = schema.history_length
    offsets = np.arange(len(ids) + 1) * length
    number = np.tile(np.arange(length), len(ids))
    histories = []
    for domain in DOMAINS:
        known_after = rng.integers(500, 60_000, len(number))
        event_time = START_MS - _HOUR_MS * (length - number)
        histories.append(_views(schema, domain, 1 + number, event_time, known_after, rng))
    attributes = records_from_columns(schema, "user", {"user_id": ids, "activity_group": rng.integers(0, 4, len(ids))})
    return UserBatch(ids, attributes, histories[0], offsets, histories[1], offsets)


def _views(
    schema: RecordSchema,
    domain: Domain,
    view_id: np.ndarray,
    event_time: np.ndarray,
    known_after: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Records [E]."""
    count = len(event_time)
    columns = {
        "view_id": view_id,
        "event_time": event_time,
        "known_after": known_after,
        "author_id": _FIRST_AUTHOR + 101 * rng.integers(0, 10**6, count),
        "play_time": known_after,
        "page": rng.integers(0, 4, count),
        "tag": rng.integers(0, 40, count),
        "behaviours": rng.integers(0, 8, count),
    }
    return records_from_columns(schema, domain, columns)
