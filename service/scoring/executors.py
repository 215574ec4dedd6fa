"""Threads that run batches: an idle one takes what waits at once."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from queue import SimpleQueue
from typing import Generic, TypeVar

from service.scoring.policy import BatchPolicy, JobT, Share

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

_READS = 8  # turns of the event loop that a batch may wait for what can be read at once
_COMPANY_S = 0.001  # that a batch without threads may wait for jobs that are coming (docs/decisions.md)

_log = logging.getLogger(__name__)


class ScorerClosedError(RuntimeError):
    """The service is stopping and takes no more work."""


class TooLateError(RuntimeError):
    """The deadline of a request came before its turn."""


class Executors(Generic[JobT]):
    """`count` threads over one policy, whose lock this is.  Threads of the caller only add and drop.

    Without threads the event loop of the caller runs the batches, one in a turn: where it has one core only, threads
    would interrupt each other and clear each other's caches.  There a batch waits a moment for jobs that are `coming`:
    the core has nothing else to do meanwhile, and what runs once for several requests finds its code in the caches.
    """

    def __init__(
        self,
        policy: BatchPolicy[JobT],
        count: int,
        run: Callable[[Sequence[Share[JobT]]], None],
        on_late: Callable[[Sequence[JobT]], None],
        tile_s: Callable[[], float],
    ) -> None:
        """run: a batch, in a thread; it calls `finish` and must not raise.  on_late: whose deadline (of time.monotonic)
        cannot be met, when a tile takes `tile_s`; likewise.
        """
        self._policy, self._run, self._on_late, self._tile_s = policy, run, on_late, tile_s
        self._lock = threading.Lock()
        self._wake: SimpleQueue[None] = SimpleQueue()  # one entry for each thread to be woken
        self._idle, self._closed = 0, False
        self._began: dict[int, float] = {}  # by thread that runs a batch: time.monotonic()
        # without threads: whether a turn of the loop is due; how many jobs were seen since the last, in how many reads
        self._due, self._seen, self._reads = False, 0, 0
        self._company = _Company(self._turn)
        self._threads = [threading.Thread(target=self._work, name=f"engine-{n}", daemon=True) for n in range(count)]
        for thread in self._threads:
            thread.start()

    def add(self, job: JobT) -> None:
        """ScorerClosedError after `close`."""
        with self._lock:
            if self._closed:
                raise ScorerClosedError("the scorer is closed")
            self._policy.add(job)
            if self._threads:
                self._wake_one()
            elif not self._due:
                self._due = True
                asyncio.get_running_loop().call_soon(self._turn)

    def coming(self) -> AbstractContextManager[None]:
        """Inside is what has to be read before a job is added; it is added, if at all, without another wait."""
        return nullcontext() if self._threads else self._company

    def drop(self, job: JobT) -> None:
        with self._lock:
            self._policy.drop(job)

    def finish(self, shares: Iterable[Share[JobT]]) -> list[JobT]:
        """These were scored; the jobs of which nothing is left."""
        with self._lock:
            return [share.job for share in shares if self._policy.finish(share)]

    def close(self) -> list[JobT]:
        """Stop when the running batches are done; the jobs that nobody will run.  `join` waits for the threads."""
        with self._lock:
            self._closed = True
            jobs = self._policy.drain()
            for _ in self._threads:
                self._wake.put(None)
        return jobs

    def busy_s(self) -> float:
        """How long the batch that has run longest has been running; 0 when none runs, or the event loop runs them."""
        began = list(self._began.values())
        return time.monotonic() - min(began) if began else 0.0

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _turn(self) -> None:
        """One batch, in the event loop, once all is read that has come: whoever comes together shares it."""
        if self._company.is_awaited():
            return
        with self._lock:
            waiting = len(self._policy)
            if waiting > self._seen and self._reads < _READS:
                self._seen, self._reads = waiting, self._reads + 1
                asyncio.get_running_loop().call_soon(self._turn)
                return
            self._seen = self._reads = 0
            self._company.over()
            late = self._policy.expire(time.monotonic(), self._tile_s())
            batch = self._policy.take()
        if late:
            self._on_late(late)
        if batch:
            self._run(batch)
        with self._lock:
            self._due = len(self._policy) > 0
        if self._due:
            asyncio.get_running_loop().call_soon(self._turn)

    def _work(self) -> None:
        me = threading.get_ident()
        while batch := self._next():
            self._began[me] = time.monotonic()
            self._run(batch)
            del self._began[me]

    def _next(self) -> list[Share[JobT]]:
        """Waits for a batch; empty after `close`."""
        while True:
            with self._lock:
                late = self._policy.expire(time.monotonic(), self._tile_s())
                batch = self._policy.take(self._idle)
                if batch and len(self._policy):
                    self._wake_one()
                is_next = bool(batch) or self._closed
                self._idle += not is_next
            if late:
                self._on_late(late)
            if is_next:
                return batch
            self._wake.get()

    def _wake_one(self) -> None:
        """Whoever is woken is idle no more, so that the next job wakes another."""
        if self._idle:
            self._idle -= 1
            self._wake.put(None)


class _Company(AbstractContextManager[None]):
    """Jobs that are coming to an event loop, and the batch that waits for them.  Entered once for each job."""

    def __init__(self, turn: Callable[[], None]) -> None:
        """turn: called when the wait is over"""
        self._turn, self._count = turn, 0
        self._ends: float | None = None  # of loop.time: when this batch has waited enough
        self._timer: asyncio.TimerHandle | None = None  # while it waits

    def __enter__(self) -> None:
        self._count += 1

    def __exit__(self, *_: object) -> None:
        self._count -= 1
        if not self._count and self._timer is not None:
            self._timer.cancel()
            self._timer = None
            asyncio.get_running_loop().call_soon(self._turn)  # when this job has been added

    def is_awaited(self) -> bool:
        """Whether a turn has to wait; then there will be another."""
        self._timer = None
        if not self._count:
            return False
        loop = asyncio.get_running_loop()
        if self._ends is None:
            self._ends = loop.time() + _COMPANY_S
        if loop.time() >= self._ends:
            return False
        self._timer = loop.call_at(self._ends, self._turn)
        return True

    def over(self) -> None:
        """The batch is taken: the next may wait again."""
        self._ends = None


def bisect(
    items: Sequence[ItemT], run: Callable[[Sequence[ItemT]], list[ResultT]], on_failure: Callable[[int], None]
) -> list[ResultT | Exception]:
    """`run` of all, in halves where it fails, so that an item that makes it fail fails alone.

    on_failure: called with how many items failed together.
    """
    try:
        return list(run(items))
    except Exception as error:  # whatever the engine says of these inputs
        on_failure(len(items))
        if len(items) == 1:
            return [error]
        half = len(items) // 2
        return bisect(items[:half], run, on_failure) + bisect(items[half:], run, on_failure)
