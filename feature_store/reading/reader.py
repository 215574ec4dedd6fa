"""Reading with a ladder: what the store says, else what this process last heard, else nothing, and which it was.

Letters: C authors asked for.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from feature_store.authors import Authors
from feature_store.reading.alarm import Alarms, TimeIsUp
from feature_store.reading.breaker import Breaker, State
from feature_store.reading.last_good import LastGood
from feature_store.reading.metrics import (
    Cause,
    count_corrupt,
    count_last_good,
    count_less,
    count_whole,
    show_circuit,
    show_last_good,
)
from feature_store.reading.parts import PartedStore
from feature_store.reading.settings import ReadingSettings, Word
from feature_store.records import UserRecord
from feature_store.schema import MISSING
from feature_store.store import StoreAnswer, StoreError

_MB = 1 << 20
_SHOW_EVERY_S = 1.0
_NOBODY = Authors.of({})
_LEAST_TRIAL = 0.25  # of the budget: a reading that had less tells nothing of the store

_log = logging.getLogger(__name__)


class Readable(Protocol):
    """What of a FeatureStore is used here."""

    async def read(
        self, user_id: int, author_ids: Sequence[int] | np.ndarray, live_ids: np.ndarray | None = None
    ) -> StoreAnswer:
        """As FeatureStore."""


class StepForbidden(StoreError):  # noqa: N818 - it is what was found
    """An answer would lack what a setting says it must not lack."""

    def __init__(self, word: Word) -> None:
        super().__init__(f"the answer would be degraded by {word}, which FARM_READING_FORBID makes an error")
        self.word = word


class Reading(NamedTuple):
    """What is known of a user and some authors, and what of it is not as the store has it now."""

    found: StoreAnswer
    degraded: tuple[Word, ...]  # because of the store; a user without events is none of it
    cause: Cause  # of the first of them


@dataclass(slots=True)
class _Parts:
    """What came so far of one reading."""

    authors: Mapping[int, np.ndarray]
    wanted: Sequence[tuple[int, int]] = ()  # authors and rooms that did not come
    user: UserRecord | None = None
    corrupt: bool = False
    has_user: bool = False  # the store told of the user, if only that there is none
    cause: Cause = ""


class LadderReader:
    """Reads a store so that there is always something to answer with.

    A server has `budget_ms` for a reading; one that keeps failing is left alone for a while and then tried with one
    reading at a time.  Records of users that were read are kept for `last_good_age_s`: so an erased user may come back
    in answers for so long, while the store does not answer.
    A store on this machine (LMDB) answers at once or fails, so it has no limit of time.
    For one event loop at a time.

    Example::

        reader = LadderReader(store, ReadingSettings())
        reading = await reader.read(user_id, author_ids, None, within_s=0.05)
        reading.found.user, reading.degraded  # a record, ("stale_history",)
    """

    def __init__(self, store: Readable, settings: ReadingSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self.last_good = LastGood(settings.last_good_mb * _MB, settings.last_good_age_s)
        self.breaker = Breaker(
            settings.failures_in_row,
            settings.failure_share,
            settings.failure_window,
            settings.probe_interval_s,
            self._tell_circuit,
        )
        self._store, self._settings, self._clock = store, settings, clock
        self._parted = store if isinstance(store, PartedStore) else None
        if self._parted is not None:
            self._parted.keep_outdated_authors(settings.stale_author_age_s)
        self._budget_s = settings.budget_ms / 1000
        self._alarms = Alarms(self._budget_s)
        self._show_at = self._quiet_until = -math.inf
        self._alone, self._reason = False, ""  # whether the store is left alone, and why
        show_circuit("closed")

    async def read(
        self, user_id: int, author_ids: Sequence[int] | np.ndarray, live_ids: np.ndarray | None, within_s: float | None
    ) -> Reading:
        """One user and some authors [C]; live_ids [C]: as `FeatureStore.read`.

        within_s: what the request has left for it; None: `budget_ms` alone is the limit.
        Raises StepForbidden when the answer would lack what may not be lacking.
        """
        begun = self._clock()
        attempt = self.breaker.admit(begun)
        if self._parted is not None:
            at_most_s = math.inf if within_s is None else max(within_s, 0.0)
            parts = await self._read_parts(self._parted, attempt, user_id, author_ids, live_ids, at_most_s)
        else:
            parts = await self._read_whole(attempt, user_id, author_ids, live_ids)
        if parts.has_user:
            self._keep(user_id, parts, begun)
        if not parts.cause:
            count_whole()
            return Reading(StoreAnswer(parts.user, parts.authors, False), (), "")
        return self._step_down(user_id, parts)

    async def _read_whole(
        self,
        attempt: int | None,
        user_id: int,
        author_ids: Sequence[int] | np.ndarray,
        live_ids: np.ndarray | None,
    ) -> _Parts:
        """From a store that answers at once."""
        if attempt is None:
            return _Parts({}, _any_room(author_ids), cause="open")
        try:
            found = await self._store.read(user_id, author_ids, live_ids)
        except StoreError as error:
            self._failed(attempt, str(error))
            return _Parts({}, _any_room(author_ids), cause="down")
        except BaseException:
            self.breaker.told_nothing(attempt, self._clock())
            raise
        self.breaker.succeeded(attempt)
        return _Parts(found.authors, (), found.user, found.corrupt, True, "corrupt" if found.corrupt else "")

    async def _read_parts(
        self,
        store: PartedStore,
        attempt: int | None,
        user_id: int,
        author_ids: Sequence[int] | np.ndarray,
        live_ids: np.ndarray | None,
        at_most_s: float,
    ) -> _Parts:
        """From a server, within the budget."""
        parts = _Parts(*store.look_up_authors(author_ids, live_ids))
        if attempt is None:
            parts.cause = "open"
            return parts
        try:
            with self._alarms.within(at_most_s):
                if parts.wanted:
                    await _fill(store, user_id, parts)
                else:
                    parts.user, parts.corrupt = await store.read_user(user_id)
                    parts.has_user = True
        except TimeIsUp:
            parts.cause = "slow"
            self._gave_up(attempt, parts, at_most_s)
        except StoreError as error:
            parts.cause = "down"
            self._failed(attempt, str(error), parts.has_user)
        except BaseException:
            self.breaker.told_nothing(attempt, self._clock())
            raise
        if parts.has_user:
            self.breaker.succeeded(attempt)
        if parts.corrupt:
            parts.cause = parts.cause or "corrupt"
        return parts

    def _gave_up(self, attempt: int, parts: _Parts, at_most_s: float) -> None:
        if at_most_s < _LEAST_TRIAL * self._budget_s and not parts.has_user:
            self.breaker.told_nothing(attempt, self._clock())
        else:
            reason = f"no answer within {1000 * min(at_most_s, self._budget_s):.0f} ms"
            self._failed(attempt, reason, parts.has_user)

    def _failed(self, attempt: int, reason: str, has_user: bool = False) -> None:
        """A store that told of the user is worth asking, though it did not tell of every author."""
        now = self._clock()
        self._reason = reason
        if not self._alone and now >= self._quiet_until:
            self._quiet_until = now + _SHOW_EVERY_S
            _log.error("answering without %s: %s", "some authors" if has_user else "the store", reason)
        if not has_user:
            self.breaker.failed(attempt, now)

    def _keep(self, user_id: int, parts: _Parts, now: float) -> None:
        """What the store said of a user; what it said of another time is worth nothing now."""
        if parts.user is not None:
            self.last_good.put(user_id, parts.user, now)
        elif not parts.corrupt:
            self.last_good.forget(user_id)
        if now >= self._show_at:
            self._show_at = now + _SHOW_EVERY_S
            show_last_good(len(self.last_good), self.last_good.size)

    def _step_down(self, user_id: int, parts: _Parts) -> Reading:
        """The best that there is without what did not come.  StepForbidden."""
        words: list[Word] = []
        if not parts.has_user:
            words.append(self._last_known(user_id, parts))
        elif parts.corrupt:
            words.append("corrupt_history")
            count_corrupt("user")
        if parts.wanted:
            words += self._outdated(parts)
        forbidden = next((word for word in words if word in self._settings.forbid), None)
        count_less("degraded" if forbidden is None else "forbidden", words, parts.cause)
        if forbidden is not None:
            raise StepForbidden(forbidden)
        return Reading(StoreAnswer(parts.user, parts.authors, parts.corrupt), tuple(words), parts.cause)

    def _last_known(self, user_id: int, parts: _Parts) -> Word:
        now = self._clock()
        kept = self.last_good.get(user_id, now)
        count_last_good(None if kept is None else now - kept.read_at)
        if kept is None:
            return "no_history"
        parts.user = kept.user
        return "stale_history"

    def _outdated(self, parts: _Parts) -> list[Word]:
        """Authors from before take the place of those that did not come."""
        lacking = {author for author, _ in parts.wanted if author not in parts.authors}
        has_other_rooms = any(author not in lacking for author, _ in parts.wanted)
        old = _NOBODY if self._parted is None else self._parted.outdated_authors(list(lacking))
        parts.authors = _NOBODY | parts.authors | old
        words: list[Word] = ["stale_authors"] if old or has_other_rooms else []
        return [*words, "unknown_authors"] if len(old) < len(lacking) else words

    def _tell_circuit(self, state: State) -> None:
        show_circuit(state)
        if state == "open" and not self._alone:
            _log.error("the store is left alone, and tried now and then: %s", self._reason)
        elif state == "closed":
            _log.warning("the store answers again")
        self._alone = state != "closed"


async def _fill(store: PartedStore, user_id: int, parts: _Parts) -> None:
    """Ask for the user and the wanted authors at once.  What came is in `parts`, whatever ends the waiting."""
    fetch = asyncio.ensure_future(store.fetch_authors(list(parts.wanted)))
    try:
        parts.user, parts.corrupt = await store.read_user(user_id)
        parts.has_user = True
        await fetch
    finally:
        if not fetch.cancel() and not fetch.cancelled() and fetch.exception() is None:
            parts.authors, parts.wanted = _NOBODY | parts.authors | fetch.result(), ()


def _any_room(author_ids: Sequence[int] | np.ndarray) -> list[tuple[int, int]]:
    return [(int(author), MISSING) for author in author_ids]
