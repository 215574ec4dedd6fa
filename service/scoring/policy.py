"""Which jobs the next batch serves.  Pure: no threads, no clock.

Nothing waits for company here: whoever takes gets what is there, so jobs share a batch only when they met in the queue.
The cost of a batch is in tiles of K candidates; a job whose user state is not known costs `user_tiles` more.
Smallest remaining cost first, ties in order of arrival.  A job greater than a batch is cut.  A job that was passed over
4 times goes first.  Together the overdue and the cut leave half a batch to the others: whoever is among the smallest
that cost no more than that is in the very next batch.

A job of low priority is taken when no other is left over, or once it was passed over 16 times: then those share a
quarter of a batch, which is of the half that the overdue have.  Whose deadline would pass before it could be done is
dropped by `expire`, before it costs anything; among the others a deadline does not change the order.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, TypeVar

PASSES = 4  # batches that a job waits through before it goes first
LOW_PASSES = 16  # likewise, of low priority
_LOW_PARTS = 4  # of a batch: overdue jobs of low priority take at most a quarter of one
_LEAST_PARTS = 4  # of a batch: a job is not spread thinner than a quarter of one over idle executors


@dataclass(eq=False)
class Job:
    """What the policy knows of a request.  Its state is known when its user tower need not run."""

    candidates: int
    has_state: bool = False
    low: bool = False  # its priority
    deadline: float = math.inf  # on the clock of whoever calls `expire`, seconds
    taken: int = field(default=0, init=False)  # candidates that batches have taken
    scored: int = field(default=0, init=False)
    arrival: int = field(default=-1, init=False)
    since: int = field(default=0, init=False)  # batches when it came or was last served
    dropped: bool = field(default=False, init=False)


JobT = TypeVar("JobT", bound=Job)


@dataclass(frozen=True)
class Share(Generic[JobT]):
    """Candidates start..stop of a job, in one batch."""

    job: JobT
    start: int
    stop: int


class _Draft(Generic[JobT]):
    """A batch that is being filled."""

    def __init__(self, user_tiles: int) -> None:
        self.tiles: dict[JobT, int] = {}
        self.cost = 0
        self._user_tiles = user_tiles

    def room(self, job: JobT, limit: int) -> int:
        """Tiles of `job` that fit into `limit`, beyond what it has; into an empty batch always one."""
        return max(limit - self._user_cost(job), 0 if self.tiles else 1)

    def add(self, job: JobT, tiles: int, limit: int) -> int:
        """Raise its tiles to `tiles`, as far as `limit` allows; what that costs."""
        had = self.tiles.get(job, 0)
        more = min(tiles - had, self.room(job, limit))
        if more <= 0:
            return 0
        added = more + self._user_cost(job)
        self.tiles[job] = had + more
        self.cost += added
        return added

    def _user_cost(self, job: JobT) -> int:
        return 0 if job.has_state or job in self.tiles else self._user_tiles


class _Line(Generic[JobT]):
    """Jobs of one priority that wait."""

    def __init__(self) -> None:
        self.by_cost: list[tuple[int, int, JobT]] = []  # cost, arrival: ascending
        self.by_wait: dict[int, JobT] = {}  # by arrival; whoever waits longest comes first


class BatchPolicy(Generic[JobT]):
    """Jobs that wait.  The caller holds a lock where several threads ask."""

    def __init__(self, tile: int, batch_tiles: int, user_tiles: int) -> None:
        """tile: K;  batch_tiles: greatest cost of a batch, which only a batch of a single tile may exceed."""
        self.tile, self.batch_tiles, self.user_tiles = tile, batch_tiles, user_tiles
        self._batches = 0
        self._arrivals = count()
        self._lines: tuple[_Line[JobT], _Line[JobT]] = (_Line(), _Line())  # high priority, low

    def __len__(self) -> int:
        """Jobs that a batch could take now."""
        return sum(len(line.by_wait) for line in self._lines)

    def cost(self, job: Job) -> int:
        """Of what is left of it, in tiles."""
        return self._tiles(job) + (0 if job.has_state else self.user_tiles)

    def add(self, job: JobT) -> None:
        """It has at least one candidate."""
        job.arrival = next(self._arrivals)
        self._enter(job)

    def take(self, idle: int = 0) -> list[Share[JobT]]:
        """The next batch; empty when nothing waits.

        Where a job is cut and its state is not known, the rest waits until the share is finished.
        idle: other executors with nothing to do.  What is left of a job greater than a batch is spread over them, and
        if its state is not known, it gives one tile first, which brings the state.
        """
        draft = _Draft[JobT](self.user_tiles)
        high, low = self._lines
        half = self.batch_tiles // 2
        half -= self._take_overdue(draft, low, LOW_PASSES, self.batch_tiles // _LOW_PARTS)
        half -= self._take_overdue(draft, high, PASSES, half)
        half -= self._take_line(draft, high, half, idle)
        if self._has_all(draft, high):
            self._take_line(draft, low, half, idle)
        self._batches += 1
        return [self._cut(job, tiles) for job, tiles in draft.tiles.items()]

    def expire(self, now: float, tile_s: float) -> list[JobT]:
        """Drop those that would miss their deadline though they were run alone and at once.

        tile_s: seconds of a tile, 0 to drop only whose deadline has passed.
        """
        late = [job for line in self._lines for cost, _, job in line.by_cost if job.deadline < now + cost * tile_s]
        for job in late:
            self.drop(job)
        return late

    def finish(self, share: Share[JobT]) -> bool:
        """It was scored, so the state of its job is known; whether nothing of the job is left."""
        job = share.job
        job.scored += share.stop - share.start
        if not job.has_state:
            job.has_state = True
            if self._tiles(job) and not job.dropped:
                self._enter(job)
        return job.scored == job.candidates

    def drop(self, job: JobT) -> None:
        """No batch takes (more of) it."""
        job.dropped = True
        if job.arrival in self._lines[job.low].by_wait:
            self._leave(job)

    def drain(self) -> list[JobT]:
        """Drop all that wait, in order of arrival."""
        jobs = sorted((job for line in self._lines for job in line.by_wait.values()), key=lambda job: job.arrival)
        for job in jobs:
            self.drop(job)
        return jobs

    def _tiles(self, job: Job) -> int:
        return -(-(job.candidates - job.taken) // self.tile)

    def _take_overdue(self, draft: _Draft[JobT], line: _Line[JobT], passes: int, limit: int) -> int:
        """What was added, at most `limit`, but for a single tile in an empty batch."""
        left = limit
        for job in line.by_wait.values():
            if self._batches - job.since < passes:
                break
            left -= draft.add(job, self._tiles(job), left)
        return limit - left

    def _take_line(self, draft: _Draft[JobT], line: _Line[JobT], half: int, idle: int) -> int:
        """Overdue and cut jobs leave half a batch to those that are taken whole; how much of `half` the cut took."""
        left = half
        for _, _, job in line.by_cost:
            if self._is_divisible(job):
                left -= draft.add(job, self._tiles_at_once(job, idle), min(left, self.batch_tiles - draft.cost))
            elif not self._add_whole(draft, job):
                break
        for _, _, job in line.by_cost:  # of which nothing is left over
            if self._is_divisible(job):
                draft.add(job, self._tiles_at_once(job, idle), self.batch_tiles - draft.cost)
        return half - left

    def _has_all(self, draft: _Draft[JobT], line: _Line[JobT]) -> bool:
        """Nothing of the line is left over."""
        return all(draft.tiles.get(job) == self._tiles(job) for job in line.by_wait.values())

    def _add_whole(self, draft: _Draft[JobT], job: JobT) -> bool:
        tiles, room = self._tiles(job), self.batch_tiles - draft.cost
        if tiles - draft.tiles.get(job, 0) > draft.room(job, room):
            return False
        draft.add(job, tiles, room)
        return True

    def _is_divisible(self, job: JobT) -> bool:
        """What fits a batch of its own is not cut, unless it is overdue: that would serve nobody earlier."""
        return job.taken > 0 or self.cost(job) > self.batch_tiles

    def _tiles_at_once(self, job: JobT, idle: int) -> int:
        """How many tiles of it one batch should take, room permitting."""
        left = self._tiles(job)
        if not (idle and self._is_divisible(job)):
            return left
        if not job.has_state:
            return 1
        return min(left, max(-(-left // (idle + 1)), self.batch_tiles // _LEAST_PARTS))

    def _cut(self, job: JobT, tiles: int) -> Share[JobT]:
        start, stop = job.taken, min(job.taken + tiles * self.tile, job.candidates)
        self._leave(job)
        job.taken = stop
        if stop < job.candidates and job.has_state:
            self._enter(job)
        return Share(job, start, stop)

    def _enter(self, job: JobT) -> None:
        job.since = self._batches
        line = self._lines[job.low]
        insort(line.by_cost, (self.cost(job), job.arrival, job))
        line.by_wait[job.arrival] = job

    def _leave(self, job: JobT) -> None:
        line = self._lines[job.low]
        del line.by_cost[bisect_left(line.by_cost, (self.cost(job), job.arrival))]
        del line.by_wait[job.arrival]
