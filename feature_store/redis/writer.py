"""Writing to a store in Redis: merged in the client as far as that goes, then by the functions in the server.

Letters: U users.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from feature_store.events.batch import EventBatch
from feature_store.merge import as_events, drop_erased, merge_authors, merge_batch, merge_users
from feature_store.records import Pieces, UserBatch, stamp
from feature_store.redis.codec import raw_pieces
from feature_store.redis.functions import Call, MergeFunctions, Reply
from feature_store.redis.keys import RedisKeys
from feature_store.redis.link import RedisLink
from feature_store.schema import RecordSchema, widen

_CALLS_AT_ONCE = 250  # of one trip; with whole histories to merge they keep the server for about 0.1 s
_TRIPS = 3  # under way at a time, so that client and server work at once
_ENDLESS = 2**40

_T = TypeVar("_T")


class RedisWriter:
    """Merges into a generation of a namespace.  Every method raises StoreError, and ValueError for what does not fit.

    A user or an author is written as a whole or not at all; what failed is to be sent again.
    """

    def __init__(self, link: RedisLink, schema: RecordSchema, keys: RedisKeys) -> None:
        self._schema, self._keys, self._settings = schema, keys, link.settings
        # Events are joined before they are sent, but none is cut off: what is stored may make room for it.
        self._endless = schema.model_copy(update={"history_length": _ENDLESS, "history_spare": _ENDLESS})
        self._functions = MergeFunctions(link, schema)

    async def put_users(self, generation: int, batch: UserBatch, times: np.ndarray) -> None:
        """times: [U], when the attributes were said."""
        batch = merge_batch(self._schema, batch)
        own = np.empty(0, self._schema.dtype("user")) if batch.attributes is None else batch.attributes
        attributes = stamp(self._schema, "user", own, times[: len(own)])
        offsets = np.arange(len(batch.user_ids) + 1) * (batch.attributes is not None)
        histories = (batch.video, batch.video_offsets), (batch.live, batch.live_offsets)
        erased = await self._merge_users(generation, batch.user_ids, (attributes, offsets), *histories)
        if erased:
            refused = _of_users(as_events(self._schema, batch, times), erased)
            await self.apply_users(generation, drop_erased(refused, erased))

    async def put_authors(self, generation: int, records: np.ndarray, updated_at: np.ndarray) -> list[int]:
        """Returns the authors."""
        ids, *lives = merge_authors(self._schema, records, updated_at)
        authors: list[int] = ids.tolist()
        function = self._functions.library.author
        blobs = zip(authors, raw_pieces((lives[0], lives[1])), strict=True)
        await self._call((function, 1, self._keys.author(generation, author), blob) for author, blob in blobs)
        return authors

    async def apply_users(self, generation: int, events: EventBatch) -> int:
        """Merge views and attributes.  Returns how many were dropped.

        What is said of an erased user is sent again without what is not newer than the erasure.
        """
        dropped = 0
        while erased := await self._merge_users(generation, *merge_users(self._endless, events)):
            refused = _of_users(events, erased)
            events = drop_erased(refused, erased)
            dropped += len(refused) - len(events)
        return dropped

    async def erase(self, user_id: int, erased_until: int, generations: int) -> int:
        """Remove a user from generations 1 to `generations` and leave a tombstone; returns from how many."""
        users = [self._keys.user(number, user_id) for number in range(1, generations + 1)]
        keys = [self._keys.tombstone(user_id), *users]
        ttl_ms = 1000 * self._settings.tombstone_ttl_s
        (removed,) = await self._functions.call(
            [(self._functions.library.erase, len(keys), *keys, erased_until, ttl_ms)]
        )
        return int(removed)

    async def _merge_users(
        self, generation: int, ids: np.ndarray, attributes: Pieces, video: Pieces, live: Pieces
    ) -> dict[int, int]:
        """Merge parts of users [U], each merged in itself.  Returns erased_until of the users that were refused."""
        function, ttl_ms = self._functions.library.user, 1000 * self._settings.user_ttl_s
        users: list[int] = ids.tolist()
        parts = zip(users, raw_pieces(video), raw_pieces(live), raw_pieces(attributes), strict=True)
        calls: Iterator[Call] = (
            (function, 2, self._keys.user(generation, user), self._keys.tombstone(user), views, lives, own, ttl_ms)
            for user, views, lives, own in parts
        )
        replies = await self._call(calls)
        return {user: int(reply) for user, reply in zip(users, replies, strict=True) if isinstance(reply, bytes)}

    async def _call(self, calls: Iterable[Call]) -> list[Reply]:
        """Replies in the order of the calls; some trips are under way at a time."""
        batches = enumerate(_batched(calls, _CALLS_AT_ONCE))
        replies: dict[int, list[Reply]] = {}

        async def work() -> None:
            for number, batch in batches:
                replies[number] = await self._functions.call(batch)

        await _together([work() for _ in range(_TRIPS)])
        return [reply for number in sorted(replies) for reply in replies[number]]


def _of_users(events: EventBatch, users: Mapping[int, int]) -> EventBatch:
    """The views and attributes of some users."""
    ids = np.array(list(users), np.int64)
    owners = events.video_users, events.live_users, widen(events.users["user_id"])
    video, live, own = (np.isin(column, ids) for column in owners)
    return events.select(video, live, slice(0), own)


def _batched(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


async def _together(work: Sequence[Coroutine[Any, Any, None]]) -> None:
    """All at once; the first that fails ends the others."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
