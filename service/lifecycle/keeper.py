"""Brings into service what the pointer of an artifact store names, and takes back what turns out to be bad.

In the parent, in a thread of its own; the admin port asks from others.  One change at a time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from model.artifact.formula import Formula
from model.registry.errors import PointerConflictError
from model.registry.pointer import Pointer
from model.registry.store import ArtifactStore
from service.lifecycle.failure import one_line
from service.lifecycle.fleet import ChangeError, Fleet
from service.lifecycle.pulses import Pulse
from service.lifecycle.quiet import quietly_now
from service.lifecycle.settings import LifecycleSettings
from service.lifecycle.watch import Watch
from service.tasks import LocalModel, Order, ShadowOrder, SplitOrder

_RETRY_S = 30.0  # a pointer that could not be served is tried again: its reason may have been this machine's
_GO_AGAIN_S = 5.0  # a model that must go and could not: it answers wrongly until it has gone

_log = logging.getLogger(__name__)


class PublishedError(ChangeError):
    """The pointer was replaced, but this instance could not switch to what it names."""


@dataclass(frozen=True)
class Refusal:
    """A pointer that this service does not serve."""

    pointer: Pointer
    reason: str
    retry_at: float  # time.monotonic()


@dataclass
class Verdict:
    """What serves must go."""

    why: str
    try_at: float = 0.0  # time.monotonic()


@dataclass
class Tally:
    """Changes since the service was started."""

    switched: int = 0
    refused: int = 0
    rolled_back: int = 0  # by itself; also among the switched


class Keeper:
    """`first`, then `attach`, then `start`."""

    def __init__(
        self, store: ArtifactStore, settings: LifecycleSettings, cache: Path | None, formula: Formula | None = None
    ) -> None:
        """cache: folder for what is fetched; None: it is read where it is;  formula: of pointers that name none."""
        self.store, self.tally = store, Tally()
        self._settings, self._cache, self._formula = settings, cache, formula or Formula()
        self._lock = threading.Lock()  # held during a change
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="models", daemon=True)
        self._trouble = ""  # with the store, at the last poll
        self._watch: Watch | None = None
        self._verdict: Verdict | None = None  # of the watch; it stands until something else serves
        self._fleet: Fleet
        self._pulses: Callable[[], Iterable[Pulse]]
        self.pointer: Pointer  # that serves
        self.refusal: Refusal | None = None  # of the newest pointer

    def first(self) -> Order:
        """What to start with.  ValueError when the store names nothing, or that cannot be fetched."""
        pointer = self.store.read_pointer()
        if pointer is None:
            raise ValueError(f"{self.store.name}: no model is active; `farm models activate` one")
        self.pointer = pointer
        return self._order(pointer)

    def attach(self, fleet: Fleet, pulses: Callable[[], Iterable[Pulse]]) -> None:
        """pulses: of each worker, now."""
        self._fleet, self._pulses = fleet, pulses

    def start(self) -> None:
        """Watch the pointer."""
        self._thread.start()

    def close(self) -> None:
        self._ended.set()

    @property
    def is_watching(self) -> bool:
        """What serves has just begun to, and goes by itself when it fails."""
        return self._watch is not None

    def activate(self, version: str, by: str) -> None:
        """Everywhere: here it is prepared first, then the pointer is replaced, then all workers switch.

        Returns when no worker can answer with what served before.  ChangeError, RegistryError or ArtifactError: nothing
        was changed.  PublishedError: the pointer was, and what it names serves here as soon as it can.
        """
        with self._lock:
            pointer = quietly_now(lambda: self.store.propose(version, by=by))
            if pointer.number != self.pointer.number:
                self._change(pointer, publish=True)

    def rollback(self, by: str) -> None:
        """Everywhere, to what served before.  As `activate`."""
        with self._lock:
            self._rollback(by)

    def _rollback(self, by: str) -> None:
        pointer = quietly_now(lambda: self.store.propose_rollback(by, self.pointer.number))
        self._change(pointer, publish=True)

    def _change(self, pointer: Pointer, publish: bool = False) -> None:
        """publish: replace the pointer when all have prepared it, before any has switched; a failure undoes all."""
        try:
            order = self._order(pointer)
            self._fleet.prepare(order, self._settings.prepare_within_s)
            if not publish:
                self._fleet.commit(self._settings.switch_within_s)
            else:
                self._publish(pointer)
                self._switch_published(order)
        except Exception as error:
            self.tally.refused += 1
            _log.error("model %s (pointer %d) is not served: %s", pointer.model, pointer.number, one_line(error))
            raise
        self._begin(pointer)

    def _publish(self, pointer: Pointer) -> None:
        try:
            self.store.replace_pointer(pointer, pointer.number - 1)
        except Exception as error:
            self._fleet.abort(one_line(error))
            raise

    def _switch_published(self, order: Order) -> None:
        """Once more, if a process was lost meanwhile: other instances follow the pointer already."""
        try:
            self._fleet.commit(self._settings.switch_within_s)
        except ChangeError as lost:
            _log.warning("prepared once more: %s", one_line(lost))
            try:
                self._fleet.prepare(order, self._settings.prepare_within_s)
                self._fleet.commit(self._settings.switch_within_s)
            except ChangeError as error:
                raise PublishedError(one_line(error)) from error

    def _begin(self, pointer: Pointer) -> None:
        settings = self._settings
        self.tally.switched += 1
        self.pointer, self.refusal, self._verdict = pointer, None, None
        until = time.monotonic() + settings.watch_s
        self._watch = Watch(self._fleet.order.number, until, settings.watch_faults, settings.watch_requests)
        _log.warning("model %s (pointer %d, by %s) serves", pointer.model, pointer.number, pointer.by)

    def _poll(self) -> None:
        while not self._ended.wait(self._settings.models_poll_s):
            with self._lock:
                try:
                    self._look()
                    self._trouble = ""
                except Exception as error:  # what serves goes on, whatever it is
                    self._complain(one_line(error))

    def _look(self) -> None:
        pointer = self.store.read_pointer()
        if pointer is not None and pointer.number != self.pointer.number and not self._is_refused(pointer):
            self._follow(pointer)
        elif self._watch is not None:
            self._judge(self._watch)

    def _follow(self, pointer: Pointer) -> None:
        """What was activated elsewhere."""
        try:
            self._change(pointer)
        except Exception as error:  # told by `_change`, and by `refusal`
            self.refusal = Refusal(pointer, one_line(error), time.monotonic() + _RETRY_S)

    def _judge(self, watch: Watch) -> None:
        """Let what serves go, if it must; what hinders it is told, and it is tried again for as long as it takes."""
        now = time.monotonic()
        if self._verdict is None:
            why = watch.judge(self._pulses())
            if why:
                _log.error("model %s goes: %s", self.pointer.model, why)
                self._verdict = Verdict(why)
            elif watch.is_over(now):
                self._watch = None
        if self._verdict is not None and now >= self._verdict.try_at:
            self._verdict.try_at = now + _GO_AGAIN_S
            self._let_go(self._verdict.why)

    def _let_go(self, why: str) -> None:
        try:
            self._rollback(f"farm serve, by itself: {why}"[:200])
        except PointerConflictError:
            return  # another instance was first: the next look finds it
        except PublishedError:
            self.tally.rolled_back += 1
            raise
        self.tally.rolled_back += 1

    def _is_refused(self, pointer: Pointer) -> bool:
        refusal = self.refusal
        return refusal is not None and refusal.pointer.number == pointer.number and time.monotonic() < refusal.retry_at

    def _complain(self, trouble: str) -> None:
        """Once for each."""
        if trouble != self._trouble:
            _log.error("models: %s", trouble)
        self._trouble = trouble

    def _order(self, pointer: Pointer) -> Order:
        """Everything that it names is fetched."""
        split, shadow = pointer.split, pointer.shadow
        return Order(
            self._fetched(pointer.model),
            formula=pointer.formula or self._formula,
            split=None if split is None else SplitOrder(self._fetched(split.version), split.share, split.salt),
            shadow=None if shadow is None else ShadowOrder(self._fetched(shadow.version), shadow.share),
        )

    def _fetched(self, version: str) -> LocalModel:
        return LocalModel(version, quietly_now(lambda: self.store.fetch(version, self._cache)))
