"""All processes of the service, seen by who changes what they serve.

The supervisor's thread holds the processes: it calls `step` and what comes before it.  `prepare`, `commit` and `abort`
are for one other thread, and wait.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count

from service.lifecycle.change import Change, Phase
from service.lifecycle.places import Place
from service.tasks import Heard, Order


class ChangeError(RuntimeError):
    """What serves was not changed; why."""


class Fleet:
    """What serves, and at most one change of it under way."""

    def __init__(self, order: Order, places: Sequence[Place], wake: Callable[[], None]) -> None:
        """wake: the supervisor, so that it takes a step."""
        self.order = order  # that a process is started with
        self._places, self._wake = places, wake
        self._numbers = count(order.number + 1)
        self._changed = threading.Condition()
        self._asked: list[Callable[[], None]] = []
        self._change: Change[Place] | None = None
        self._doomed: list[Place] = []
        self._closed = False

    def prepare(self, order: Order, within_s: float) -> Order:
        """In all processes, beside what serves; the order with its number.  ChangeError says which could not, and why.

        To be followed by `commit` or `abort`.
        """
        order = replace(order, number=next(self._numbers))
        if not self._do(lambda: self._begin(order), ("prepared", "failed"), within_s):
            self.abort(f"not prepared within {within_s:g} s")
        if self._change is None or self._change.phase != "prepared":
            raise ChangeError(self._change.failure if self._change else "the service is being stopped")
        return order

    def commit(self, within_s: float) -> None:
        """Switch all; returns when no answer can come from what served before.

        within_s: for the requests under way; a worker that has some still is killed, and replaced.
        ChangeError when a process was lost since it was prepared, and nobody has switched.
        """
        if not self._do(self._commit, ("done", "failed"), within_s):
            self._do(self._doom_late, ("done", "failed"), within_s)
        if self._change is not None and self._change.failure:
            raise ChangeError(self._change.failure)

    def abort(self, why: str) -> None:
        self._do(lambda: self._change.abort(why) if self._change else None, ("failed", "done"), 1.0)

    def heard(self, place: Place, message: Heard) -> None:
        if self._change is not None:
            self._change.heard(place, message)

    def ready(self, place: Place) -> None:
        if self._change is not None:
            self._change.ready(place, place.role == "engine")

    def ended(self, place: Place, why: str) -> None:
        if self._change is not None:
            self._change.ended(place, why)

    def step(self) -> list[Place]:
        """Do what was asked, tell the processes what is due; those that must be killed."""
        with self._changed:
            asked, self._asked = self._asked, []
            for do in asked:
                do()
            for place, message in self._change.due() if self._change else ():
                place.tell(message)
            doomed, self._doomed = self._doomed, []
            self._changed.notify_all()
        return doomed

    def close(self) -> None:
        """The service is being stopped: who waits waits no more."""
        with self._changed:
            self._closed = True
            if self._change is not None:
                self._change.abort("the service is being stopped")
            self._changed.notify_all()

    def _do(self, ask: Callable[[], None], until: tuple[Phase, ...], within_s: float) -> bool:
        """Whether the change reached one of these phases in time, after the supervisor has done what is asked."""
        done = False

        def do() -> None:
            nonlocal done
            ask()
            done = True

        with self._changed:
            self._asked.append(do)
            self._wake()
            return self._changed.wait_for(
                lambda: self._closed or (done and self._change is not None and self._change.phase in until), within_s
            )

    def _begin(self, order: Order) -> None:
        ready = [place for place in self._places if place.ready_at is not None]
        engines = [place for place in ready if place.role == "engine"]
        self._change = Change(order, engines, [place for place in ready if place.role == "worker"])

    def _commit(self) -> None:
        """A process that is starting was told what served before."""
        assert self._change is not None
        if self._change.phase == "prepared":
            starting = [place for place in self._places if place.process is not None and place.ready_at is None]
            self.order = self._change.order
            self._change.commit(starting)
            self._doomed += starting

    def _doom_late(self) -> None:
        if self._change is not None:
            self._doomed += self._change.late
