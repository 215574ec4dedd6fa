"""What work takes on this machine, learned from the work that was done.  Pure: times come from the caller's clock.

Work is counted in tiles of candidates, runs of the user tower and requests.  Lanes: executors that work side by side.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque

_RUNS = 31  # of which the middle one counts: a few that were held up change nothing
_KEEP = 0.98  # of what was learned of waits, at each that ends: about 50 requests are remembered
_SURPRISE = 8.0  # one wait counts as at most so many times longer, or shorter, than was expected
_BELIEVED_S = 1.0  # an estimate that nothing has confirmed for so long loses half of itself each second


class _Median:
    """Of the last values, or what was assumed before the first."""

    def __init__(self, assumed: float) -> None:
        self.value = assumed
        self._last: deque[float] = deque()
        self._sorted: list[float] = []

    def add(self, value: float) -> None:
        if len(self._last) == _RUNS:
            del self._sorted[bisect_left(self._sorted, self._last.popleft())]
        self._last.append(value)
        insort(self._sorted, value)
        self.value = self._sorted[(len(self._sorted) - 1) // 2]


class CostModel:
    """Seconds of a tile, a run of the user tower and the rest of a request; how much longer than that it really takes.

    The caller holds a lock where several threads observe; to read needs none.
    """

    def __init__(self, lanes: int = 1, tile_s: float = 150e-6, user_s: float = 500e-6, request_s: float = 0.0) -> None:
        """lanes: executors, at least 1;  tile_s, user_s, request_s: assumed until such were observed."""
        if lanes < 1:
            raise ValueError(f"lanes: must be at least 1, not {lanes}")
        self.lanes = lanes
        self.tile_s, self.user_s, self.request_s = tile_s, user_s, request_s
        self.slowdown = 1.0  # of what requests take to what their work should: waiting for the store, other processes
        self._tile, self._user, self._request = _Median(tile_s), _Median(user_s), _Median(request_s)
        self._taken = self._expected = 0.0
        self._seen = float("-inf")  # when something was observed last

    def observe_batch(self, tiles: int, candidate_s: float, users: int, user_s: float, now: float) -> None:
        """A run of the engine.  tiles: as requests are counted;  candidate_s, user_s: of all its tiles and users."""
        if tiles:
            self._tile.add(candidate_s / tiles)
        if users:
            self._user.add(user_s / users)
        self.tile_s, self.user_s, self._seen = self._tile.value, self._user.value, now

    def observe_rest(self, requests: int, seconds: float) -> None:
        """What this process did besides running the towers while it answered so many: HTTP, parsing, JSON."""
        if requests:
            self._request.add(max(0.0, seconds) / requests)
            self.request_s = self._request.value

    def observe_wait(self, expected_s: float, taken_s: float, work_s: float, now: float) -> None:
        """A request has ended.  expected_s: without slowdown, behind all that was there;  work_s: its own.

        Waits count by the work they waited for.  Whatever order an executor takes requests in, smallest first or low
        priority last, that sum is the same (Kleinrock's conservation law), so no order looks like a slowdown.
        """
        usual = self.slowdown * expected_s
        taken_s = min(max(taken_s, usual / _SURPRISE), usual * _SURPRISE)
        self._taken = _KEEP * self._taken + work_s * taken_s
        self._expected = _KEEP * self._expected + work_s * expected_s
        if self._expected > 0:
            self.slowdown = self._taken / self._expected
        self._seen = now

    def work_s(self, tiles: int, users: int, requests: int = 1) -> float:
        """Of one lane that does nothing else."""
        return tiles * self.tile_s + users * self.user_s + requests * self.request_s

    def finish_s(self, tiles: int, users: int, queued_s: float) -> float:
        """Until a request is done behind `queued_s`, which is work of one lane."""
        return self.slowdown * (queued_s / self.lanes + self.work_s(tiles, users))

    def belief(self, now: float) -> float:
        """What to multiply an estimate by: 1, and less when nothing has confirmed it for a while.

        Else a machine that was slow once, and then refuses all because it is slow, would never learn that it is not.
        """
        age = now - self._seen - _BELIEVED_S
        return 1.0 if age <= 0 else 0.5**age
