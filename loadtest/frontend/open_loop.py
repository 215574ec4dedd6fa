"""Arrivals that do not wait for answers: a greenlet for each, and latencies from when it was due.

A generator that waits for an answer before it asks again sends less when the service is slow, and does not see how
long those wait whom it did not send (coordinated omission).  Here times of arrivals are known beforehand.
"""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Iterator
from itertools import chain, takewhile

import gevent
from gevent.pool import Group

from loadtest.frontend.crowd import Visit
from loadtest.frontend.front_end import FrontEnd


class OpenLoop:
    """Rankings at given times, each of a visitor who comes back if one is due, else of a new one."""

    def __init__(self, front: FrontEnd, offsets: Iterator[float]) -> None:
        """offsets: seconds from the start, ascending."""
        self._front, self._offsets = front, offsets
        self._arrivals, self._returning = Group(), deque[Visit]()
        self._start = time.perf_counter()
        self._next: float | None = None  # when the next arrival is due, perf_counter

    def run(self) -> None:
        """Begin each arrival when it is due, until all are begun or the front end stops."""
        gc.collect()
        gc.freeze()  # else a collection among the arrivals walks through all that is loaded, for tens of milliseconds
        self._start = time.perf_counter()
        for due in self._times():
            self._next = due
            gevent.sleep(max(0.0, due - time.perf_counter()))
            if self._front.stopping:
                return
            self._arrivals.spawn(self._arrive, due).link_exception(self._broken)
        self._next = None

    def end(self) -> None:
        """Count the arrivals that have not begun although they are late: those that the process was too busy for."""
        if self._next is None:
            return
        last = time.perf_counter() - self._front.settings.late_ms / 1000
        missed = sum(map(self._front.counts, takewhile(lambda due: due <= last, chain([self._next], self._times()))))
        self._front.tally.asked += missed
        self._front.tally.never_begun += missed

    def kill(self) -> None:
        """What is still under way."""
        self._arrivals.kill()

    def _broken(self, arrival: gevent.Greenlet) -> None:
        self._front.tally.problems.append(f"the load itself: {arrival.exception!r}")

    def _times(self) -> Iterator[float]:
        return (self._start + offset for offset in self._offsets)

    def _arrive(self, due: float) -> None:
        if self._front.counts(due):
            self._front.tally.asked += 1
            self._front.tally.late_ms.append(1000 * (time.perf_counter() - due))
        visit = self._returning.popleft() if self._returning else self._front.crowd.visit()
        if self._front.watch(visit, self._front.rank(visit, due)):
            self._returning.append(visit)
