"""The connections of one worker that wait for their client, and what happens to those that wait too long."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import takewhile
from typing import Protocol

from service.doors.limits import Limits

_SWEEP_S = 0.25


class Waiter(Protocol):
    """A connection."""

    def expire(self) -> None:
        """The client has taken too long."""

    def give_way(self) -> None:
        """Close without a word."""


class Waiting:
    """Connections that wait for the same thing, the longest first."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self.since: dict[Waiter, float] = {}  # on the clock of the loop

    def longest(self, now: float, least_s: float) -> Waiter | None:
        """The one that has waited longest, if at least `least_s`."""
        return next(self._waited(now, least_s), None)

    def expired(self, now: float) -> list[Waiter]:
        return list(self._waited(now, self.limit_s))

    def _waited(self, now: float, least_s: float) -> Iterator[Waiter]:
        return (waiter for waiter, _ in takewhile(lambda entry: now - entry[1] >= least_s, self.since.items()))


class Guard:
    """Times the connections of one worker with one timer: to each it costs an entry of a dictionary."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.new = Waiting(limits.idle_s)  # for a first request
        self.idle = Waiting(limits.idle_s)  # for another
        self.heads = Waiting(limits.head_s)  # for the rest of a head
        self.bodies = Waiting(limits.body_s)  # for the rest of a body
        self.answers = Waiting(limits.answer_s)  # for the client to read
        self.leaving = Waiting(limits.leave_s)  # for the client to read why it is sent away
        self._due: float | None = None  # when the next sweep is; None: never yet
        self._skipped = False

    def arm(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to time connections, in the loop that serves them."""
        if self._due is None:
            self._again(loop)

    def place(self, now: float) -> Waiter | None:
        """The connection that gives its place to a new one; None: all are at work.

        Those that have not made a request go first, so that they cannot drive out the idle ones of honest clients.
        """
        patience_s = self.limits.patience_s
        return (
            self.heads.longest(now, patience_s)
            or self.new.longest(now, patience_s)
            or self.idle.longest(now, 0.0)
            or self.bodies.longest(now, patience_s)
            or self.answers.longest(now, patience_s)
        )

    def sweep(self, now: float, late_s: float) -> None:
        """Expire those that have waited too long.

        late_s: how long this process was busy before; then what clients have sent meanwhile is read first.
        """
        self._skipped = late_s >= _SWEEP_S and not self._skipped
        if self._skipped:
            return
        for waiting in (self.new, self.idle, self.heads, self.bodies, self.answers, self.leaving):
            for waiter in waiting.expired(now):
                waiter.expire()

    def _again(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due = loop.time() + _SWEEP_S
        loop.call_at(self._due, self._on_timer, loop)

    def _on_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        now, due = loop.time(), self._due
        assert due is not None
        self._again(loop)
        self.sweep(now, now - due)
