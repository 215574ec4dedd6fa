"""What a process remembers of authors, so that a request reads few of them from the store.

Authors and rooms that are not known are remembered too, for a shorter time.  A request that needs an author whom
another request is fetching waits for that fetch.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from functools import partial
from operator import itemgetter
from typing import Generic, TypeVar

import numpy as np

from feature_store.schema import MISSING, widen

Authors = dict[int, np.ndarray]
"""Records "author" of each known author, newest live room last."""

Rooms = list[tuple[int, int]]
"""Author and the live room that must be known of it; MISSING for any."""

_K = TypeVar("_K")


class AuthorCache:
    """Remembers authors for `ttl_s` and what is absent for `negative_ttl_s`, at most `size` of each, oldest out.

    For one event loop at a time.  fetch: reads authors of the store; what it raises reaches all who wait for it.
    """

    def __init__(
        self,
        fetch: Callable[[list[int]], Awaitable[Authors]],
        size: int,
        ttl_s: float,
        negative_ttl_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fetch = fetch
        self._clock = clock
        self._authors: Authors = {}
        self._newest: dict[int, int] = {}  # live room; most requests name it, so that they are answered by two look-ups
        self._ages = _Ages[int](size, ttl_s)
        self._absent = _Ages[tuple[int, int]](size, negative_ttl_s)
        self._under_way: dict[int, asyncio.Task[Authors]] = {}
        self._changes = 0  # how often entries were dropped; a fetch from before the last time is not remembered

    async def get(self, author_ids: Sequence[int] | np.ndarray, live_ids: np.ndarray | None = None) -> Authors:
        """The known ones of some authors [C]; live_ids [C]: see `Rooms`."""
        found, wanted = self.look_up(author_ids, live_ids)
        return found | await self.fetch(wanted) if wanted else found

    def look_up(self, author_ids: Sequence[int] | np.ndarray, live_ids: np.ndarray | None) -> tuple[Authors, Rooms]:
        """What is remembered of authors [C], and which must be fetched."""
        self._forget_old()
        ids: list[int] = np.asarray(author_ids, np.int64).tolist()
        remembered = self._newest_rooms(ids, live_ids)
        if remembered is not None:
            return remembered, []
        newest = list(map(self._newest.get, ids))
        asked = [MISSING] * len(ids) if live_ids is None else live_ids.tolist()
        wanted = [
            (author, live)
            for author, live, newest_live in zip(ids, asked, newest, strict=True)
            if newest_live is None or (live not in (MISSING, newest_live) and not self._has_room(author, live))
        ]
        known = {author: self._authors[author] for author, live in zip(ids, newest, strict=True) if live is not None}
        return known, [pair for pair in dict.fromkeys(wanted) if not self._is_absent(*pair)]

    async def fetch(self, wanted: Rooms) -> Authors:
        """Authors from the store; those that are being fetched already are waited for."""
        changes = self._changes
        tasks = self._start({author for author, _ in wanted})
        await asyncio.wait(tasks)  # unlike gather, ends no task when this request is cancelled
        fetched = {author: lives for task in tasks for author, lives in task.result().items()}
        if changes == self._changes:
            now = self._clock()
            for author, live in wanted:
                if author in fetched and live != MISSING and live not in fetched[author]["live_id"].tolist():
                    self._absent.add((author, live), now)
        return {author: fetched[author] for author, _ in wanted if author in fetched}

    def discard(self, author_ids: Iterable[int]) -> None:
        """Forget some authors, because they were written."""
        self._changes += 1
        gone = set(author_ids)
        for author in gone:
            self._under_way.pop(author, None)
            if self._authors.pop(author, None) is not None:
                del self._newest[author]
                self._ages.remove(author)
        self._absent.remove_where(lambda pair: pair[0] in gone)

    def purge(self) -> None:
        """Forget all."""
        self._changes += 1
        for memory in (self._authors, self._newest, self._ages, self._absent, self._under_way):
            memory.clear()

    def __len__(self) -> int:
        return len(self._authors)

    def _newest_rooms(self, ids: list[int], live_ids: np.ndarray | None) -> Authors | None:
        """The authors, when all are remembered and their newest rooms are those asked for: the most common case."""
        if len(ids) < 2:
            return None  # itemgetter gives no tuple
        take = itemgetter(*ids)  # half the time of a loop
        try:
            newest = take(self._newest)
        except KeyError:
            return None
        if live_ids is not None and list(newest) != live_ids.tolist():
            return None
        return dict(zip(ids, take(self._authors), strict=True))

    def _has_room(self, author: int, live: int) -> bool:
        return live in self._authors[author]["live_id"].tolist()

    def _is_absent(self, author: int, live: int) -> bool:
        return (author, MISSING) in self._absent or (author, live) in self._absent

    def _start(self, authors: set[int]) -> set[asyncio.Task[Authors]]:
        """The fetches of some authors, one new one for all that have none."""
        new = [author for author in authors if author not in self._under_way]
        if new:
            task = asyncio.ensure_future(self._fetch_and_remember(new))
            task.add_done_callback(partial(self._finish, new))
            self._under_way.update(dict.fromkeys(new, task))
        return {self._under_way[author] for author in authors}

    async def _fetch_and_remember(self, authors: list[int]) -> Authors:
        changes = self._changes
        fetched = await self._fetch(authors)
        if changes == self._changes:
            self._remember(authors, fetched)
        return fetched

    def _finish(self, authors: list[int], task: asyncio.Task[Authors]) -> None:
        for author in authors:
            if self._under_way.get(author) is task:
                del self._under_way[author]
        if not task.cancelled():
            task.exception()  # seen: it may be that no request waits for it any more

    def _remember(self, authors: list[int], fetched: Authors) -> None:
        now = self._clock()
        for author in authors:
            lives = fetched.get(author)
            if lives is None or not len(lives):
                self._absent.add((author, MISSING), now)
            else:
                self._authors[author] = lives
                self._newest[author] = int(widen(lives["live_id"][-1:])[0])
                self._ages.add(author, now)
        self._forget_old()

    def _forget_old(self) -> None:
        now = self._clock()
        for author in self._ages.outdated(now):
            del self._authors[author], self._newest[author]
        for _ in self._absent.outdated(now):
            pass


class _Ages(Generic[_K]):
    """Keys in the order in which they were added last, which is that in which they grow too old."""

    def __init__(self, size: int, ttl_s: float) -> None:
        self._size = size
        self._ttl_s = ttl_s
        self._ends: OrderedDict[_K, float] = OrderedDict()

    def add(self, key: _K, now: float) -> None:
        self._ends[key] = now + self._ttl_s
        self._ends.move_to_end(key)

    def outdated(self, now: float) -> Iterator[_K]:
        """Take out what is too old or too many."""
        while self._ends and (len(self._ends) > self._size or next(iter(self._ends.values())) <= now):
            yield self._ends.popitem(last=False)[0]

    def remove(self, key: _K) -> None:
        del self._ends[key]

    def remove_where(self, holds: Callable[[_K], bool]) -> None:
        for key in [key for key in self._ends if holds(key)]:
            del self._ends[key]

    def clear(self) -> None:
        self._ends.clear()

    def __contains__(self, key: _K) -> bool:
        return key in self._ends
