"""One change of what serves, over all processes: prepared in all, then switched in all, or in none.

Pure: whoever holds it tells the processes what `due` gives, and says what they answer.
Engine processes come first, because a worker that has prepared itself has asked them; they let go of the old last.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Generic, Literal, TypeVar

from service.tasks import Cancel, Heard, Order, Prepare, Prepared, Switch, Switched, Told

ProcessT = TypeVar("ProcessT", bound=Hashable)
Phase = Literal["engines", "workers", "prepared", "switching", "releasing", "done", "failed"]


class Change(Generic[ProcessT]):
    """Of one order.  Processes are known by whatever the holder knows them by."""

    def __init__(self, order: Order, engines: Iterable[ProcessT], workers: Iterable[ProcessT]) -> None:
        """engines, workers: that are ready."""
        self.order, self.failure = order, ""
        self._engines, self._workers = set(engines), set(workers)
        self._told: set[ProcessT] = set()  # to prepare
        self._waiting: set[ProcessT] = set()  # of this phase, that have not answered
        self._due: list[tuple[ProcessT, Told]] = []
        self.phase: Phase = "engines"
        self._prepare(self._engines)

    def due(self) -> list[tuple[ProcessT, Told]]:
        """What is to be told now, each once."""
        due, self._due = self._due, []
        return due

    def heard(self, process: ProcessT, message: Heard) -> None:
        """An answer to another change is no answer."""
        if message.number != self.order.number or process not in self._waiting:
            return
        if isinstance(message, Prepared) and self.phase in ("engines", "workers"):
            if message.failure is not None:
                self.abort(message.failure)
                return
            self._answered(process)
        elif isinstance(message, Switched) and self.phase in ("switching", "releasing"):
            self._answered(process)

    def ready(self, process: ProcessT, engine: bool) -> None:
        """One that was started before, with what served then, has become ready."""
        (self._engines if engine else self._workers).add(process)
        if self.phase == "engines" and engine:
            self._prepare([process])
        elif self.phase in ("workers", "prepared") and not engine:
            self.phase = "workers"
            self._prepare([process])
        elif engine:
            self.abort("an engine process was replaced meanwhile")

    def ended(self, process: ProcessT, why: str) -> None:
        """Before the switch nobody switches; after it, the one in its place starts with the new."""
        known = process in self._engines | self._workers
        self._engines.discard(process)
        self._workers.discard(process)
        if self.phase in ("engines", "workers", "prepared"):
            if known:
                self.abort(why)
        elif process in self._waiting:
            self._answered(process)

    def commit(self, starting: Iterable[ProcessT] = ()) -> None:
        """Switch all.  starting: with what served before, and so made to end: it is over when they have."""
        assert self.phase == "prepared"
        self.phase = "switching"
        self._waiting.update(starting)
        self._order(self._workers, Switch(self.order.number))
        self._advance()

    def abort(self, why: str) -> None:
        """Nobody switches, and what was prepared is forgotten.  Nothing after the commit."""
        if self.phase not in ("engines", "workers", "prepared"):
            return
        self.phase, self.failure = "failed", why
        self._waiting.clear()
        alive = self._engines | self._workers
        self._due = [(process, Cancel(self.order.number)) for process in self._told & alive]

    @property
    def late(self) -> list[ProcessT]:
        """That have not answered in this phase."""
        return list(self._waiting)

    @property
    def is_over(self) -> bool:
        return self.phase in ("done", "failed")

    @property
    def committed(self) -> bool:
        """A process that starts now starts with the order."""
        return self.phase in ("switching", "releasing", "done")

    def _prepare(self, processes: Iterable[ProcessT]) -> None:
        told = list(processes)
        self._told.update(told)
        self._order(told, Prepare(self.order))
        self._advance()

    def _order(self, processes: Iterable[ProcessT], message: Told) -> None:
        for process in processes:
            self._waiting.add(process)
            self._due.append((process, message))

    def _answered(self, process: ProcessT) -> None:
        self._waiting.discard(process)
        self._advance()

    def _advance(self) -> None:
        """To the next phase, when nobody is waited for."""
        if self._waiting:
            return
        if self.phase == "engines":
            self.phase = "workers"
            self._prepare(self._workers)
        elif self.phase == "workers":
            self.phase = "prepared"
        elif self.phase == "switching":
            self.phase = "releasing"
            self._order(self._engines, Switch(self.order.number))
            self._advance()
        elif self.phase == "releasing":
            self.phase = "done"
