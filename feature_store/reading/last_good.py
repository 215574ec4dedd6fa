"""Users as the store last told of them, for when it does not answer."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from feature_store.records import UserRecord

ENTRY_BYTES = 1100  # of a record's objects beside its events: tests compare it with the memory in use


class Kept(NamedTuple):
    """A record and when it was read, in seconds of the caller's clock."""

    user: UserRecord
    read_at: float
    size: int  # bytes


_SWEEP_S = 1.0


class LastGood:
    """User records by id: at most `limit` bytes, those read longest ago out first, and none older than `age_s`.

    What is too old is never given; it leaves when another record comes, at most a second later.
    """

    def __init__(self, limit: int, age_s: float) -> None:
        self.size = 0  # bytes
        self._limit, self._age_s = limit, age_s
        self._kept: OrderedDict[int, Kept] = OrderedDict()  # in the order in which they were read
        self._sweep_at = 0.0

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, user_id: int, user: UserRecord, now: float) -> None:
        """Keep a record that was just read.  One that is greater than all there is room for is not kept."""
        size = user.video.nbytes + user.live.nbytes + ENTRY_BYTES
        before = self._kept.pop(user_id, None)
        self.size += size if before is None else size - before.size
        self._kept[user_id] = Kept(user, now, size)
        if self.size > self._limit or now >= self._sweep_at:
            self._make_room(now)

    def get(self, user_id: int, now: float) -> Kept | None:
        """What is kept of a user and not too old."""
        kept = self._kept.get(user_id)
        if kept is not None and now - kept.read_at > self._age_s:
            self.forget(user_id)
            return None
        return kept

    def forget(self, user_id: int) -> None:
        """Keep nothing of a user."""
        kept = self._kept.pop(user_id, None)
        if kept is not None:
            self.size -= kept.size

    def _make_room(self, now: float) -> None:
        self._sweep_at = now + _SWEEP_S
        while self._kept:
            oldest = next(iter(self._kept.values()))
            if self.size <= self._limit and now - oldest.read_at <= self._age_s:
                return
            self.size -= self._kept.popitem(last=False)[1].size
