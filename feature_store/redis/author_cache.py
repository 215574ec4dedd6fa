"""What a process remembers of authors, so that a request reads few of them from the store.

Authors and rooms that are not known are remembered too, for a shorter time.  A request that needs an author whom
another request is fetching waits for that fetch.  Authors whose time is over may be kept, for when the store fails.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Generic, TypeVar

import numpy as np

from feature_store.authors import Authors, AuthorTable
from feature_store.redis.metrics import count_looked_up, observe_author_age, show_authors
from feature_store.schema import MISSING
from feature_store.throttle import Throttle

Fetched = dict[int, np.ndarray]
"""Records "author" of each known author, newest live room last."""

Rooms = list[tuple[int, int]]
"""Author and the live room that must be known of it; MISSING for any."""

_AGES_PER_S = 20.0  # look-ups of which an age is shown

_K = TypeVar("_K")


class AuthorCache:
    """Remembers authors for `ttl_s` and what is absent for `negative_ttl_s`, at most `size` of each, oldest out.

    For one event loop at a time.  fetch: reads authors of the store; what it raises reaches all who wait for it.
    """

    def __init__(
        self,
        fetch: Callable[[list[int]], Awaitable[Fetched]],
        size: int,
        ttl_s: float,
        negative_ttl_s: float,
        clock: Callable[[], float] = time.monotonic,
        outdated_s: float = 0.0,
    ) -> None:
        """outdated_s: how long authors are kept since they were read, past `ttl_s`; within `size`, the others first."""
        self._fetch = fetch
        self._clock = clock
        self._size = size
        self._authors = _Table()
        self._outdated = _Ages[int](size, outdated_s - ttl_s)
        self._ages = _Ages[int](size, ttl_s)
        self._absent = _Ages[tuple[int, int]](size, negative_ttl_s)
        self._under_way: dict[int, asyncio.Task[Fetched]] = {}
        self._throttle = Throttle(_AGES_PER_S)
        self._changes = 0  # how often entries were dropped; a fetch from before the last time is not remembered

    async def get(self, author_ids: Sequence[int] | np.ndarray, live_ids: np.ndarray | None = None) -> Authors:
        """The known ones of some authors [C]; live_ids [C]: see `Rooms`."""
        found, wanted = self.look_up(author_ids, live_ids)
        return found | await self.fetch(wanted) if wanted else found

    def look_up(self, author_ids: Sequence[int] | np.ndarray, live_ids: np.ndarray | None) -> tuple[Authors, Rooms]:
        """What is remembered of authors [C], and which must be fetched."""
        self._forget_old()
        ids, asked, wanted = np.asarray(author_ids, np.int64), live_ids, []
        found, absent = self._authors.find(ids)
        if len(found.ids) < len(ids):
            lives = np.full(len(ids), MISSING) if asked is None else asked
            wanted = list(zip(ids[absent].tolist(), lives[absent].tolist(), strict=True))
            asked = lives[~absent]
        if asked is not None:
            wanted += found.lacking(asked)
        missing = [pair for pair in dict.fromkeys(wanted) if not self._is_absent(*pair)]
        self._show(ids, len(wanted), len(missing))
        return found, missing

    async def fetch(self, wanted: Rooms) -> Fetched:
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

    def outdated(self, author_ids: Iterable[int]) -> Authors:
        """Those of some authors that are kept past their time; none of them is among those remembered."""
        self._forget_old()
        return self._authors.take_outdated(author_ids)

    def discard(self, author_ids: Iterable[int]) -> None:
        """Forget some authors, because they were written."""
        self._changes += 1
        gone = set(author_ids)
        for author in gone:
            self._under_way.pop(author, None)
            self._drop_outdated(author)
            if self._authors.remove(author):
                self._ages.remove(author)
        self._absent.remove_where(lambda pair: pair[0] in gone)
        show_authors(len(self._authors))

    def purge(self) -> None:
        """Forget all."""
        self._changes += 1
        for memory in (self._authors, self._ages, self._outdated, self._absent, self._under_way):
            memory.clear()
        show_authors(0)

    def __len__(self) -> int:
        return len(self._authors)

    def _show(self, ids: np.ndarray, unknown: int, misses: int) -> None:
        """ids: asked for;  unknown: of them, not remembered, or not with the room that must be known."""
        count_looked_up(len(ids) - unknown, unknown - misses, misses)
        if len(ids) and self._throttle.is_due():
            age_s = self._ages.age_s(int(random.choice(ids)), self._clock())
            if age_s is not None:
                observe_author_age(age_s)

    def _is_absent(self, author: int, live: int) -> bool:
        return (author, MISSING) in self._absent or (author, live) in self._absent

    def _start(self, authors: set[int]) -> set[asyncio.Task[Fetched]]:
        """The fetches of some authors, one new one for all that have none."""
        new = [author for author in authors if author not in self._under_way]
        if new:
            task = asyncio.ensure_future(self._fetch_and_remember(new))
            task.add_done_callback(partial(self._finish, new))
            self._under_way.update(dict.fromkeys(new, task))
        return {self._under_way[author] for author in authors}

    async def _fetch_and_remember(self, authors: list[int]) -> Fetched:
        changes = self._changes
        fetched = await self._fetch(authors)
        if changes == self._changes:
            self._remember(authors, fetched)
        return fetched

    def _finish(self, authors: list[int], task: asyncio.Task[Fetched]) -> None:
        for author in authors:
            if self._under_way.get(author) is task:
                del self._under_way[author]
        if not task.cancelled():
            task.exception()  # seen: it may be that no request waits for it any more

    def _remember(self, authors: list[int], fetched: Fetched) -> None:
        now = self._clock()
        known = [author for author in authors if len(fetched.get(author, ()))]
        for author in authors:
            self._drop_outdated(author)
        self._authors.add(known, fetched)
        for author in known:
            self._ages.add(author, now)
        for author in set(authors).difference(known):
            self._absent.add((author, MISSING), now)
        self._outdated.size = self._size - len(self._authors)
        self._forget_old()
        show_authors(len(self._authors))

    def _forget_old(self) -> None:
        now = self._clock()
        ended = list(self._ages.outdated(now))
        if ended:
            self._authors.set_aside([author for author, _ in ended])
            for author, end in ended:
                self._outdated.add(author, end)
            self._outdated.size = self._size - len(self._authors)
        for author, _ in self._outdated.outdated(now):
            self._authors.remove_outdated(author)
        for _ in self._absent.outdated(now):
            pass

    def _drop_outdated(self, author: int) -> None:
        if author in self._outdated:
            self._outdated.remove(author)
            self._authors.remove_outdated(author)


class _Table(AuthorTable):
    """Authors of whom some are set aside: they keep their rows, but only `take_outdated` finds them."""

    def clear(self) -> None:
        super().clear()
        self._aside: dict[int, int] = {}

    def set_aside(self, author_ids: Sequence[int]) -> None:
        self._aside.update(zip(author_ids, self._rows.remove(np.array(author_ids)).tolist(), strict=True))

    def remove_outdated(self, author: int) -> None:
        self._free.append(self._aside.pop(author))
        self._several.pop(author, None)

    def take_outdated(self, author_ids: Iterable[int]) -> Authors:
        """Those of some authors that are set aside."""
        ids = [author for author in author_ids if author in self._aside]
        rows = [self._aside[author] for author in ids]
        several = {author: self._several[author] for author in ids if author in self._several}
        return Authors(
            self._dtype if ids else np.dtype([]),
            np.array(ids, np.int64),
            self._newest[rows],
            np.ones(len(ids), bool),
            several,
        )


class _Ages(Generic[_K]):
    """Keys in the order in which they were added last, which is that in which they grow too old."""

    def __init__(self, size: int, ttl_s: float) -> None:
        self.size = size
        self._ttl_s = ttl_s
        self._ends: OrderedDict[_K, float] = OrderedDict()

    def add(self, key: _K, now: float) -> None:
        self._ends[key] = now + self._ttl_s
        self._ends.move_to_end(key)

    def age_s(self, key: _K, now: float) -> float | None:
        """Since it was added; None when it is not there."""
        end = self._ends.get(key)
        return None if end is None else now - (end - self._ttl_s)

    def outdated(self, now: float) -> Iterator[tuple[_K, float]]:
        """Take out what is too old or too many, each with when its time is over."""
        while self._ends and (len(self._ends) > self.size or next(iter(self._ends.values())) <= now):
            yield self._ends.popitem(last=False)

    def remove(self, key: _K) -> None:
        del self._ends[key]

    def remove_where(self, holds: Callable[[_K], bool]) -> None:
        for key in [key for key in self._ends if holds(key)]:
            del self._ends[key]

    def clear(self) -> None:
        self._ends.clear()

    def __contains__(self, key: _K) -> bool:
        return key in self._ends
