"""The front end: asks for rankings, checks what comes, tells what was watched, and keeps the books."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random

import gevent

from loadtest.frontend.checks import Known, wrong
from loadtest.frontend.crowd import Ask, Clock, Crowd, Visit
from loadtest.frontend.habits import SHOWN, Habits, View
from loadtest.frontend.lines import Line, Lines
from loadtest.frontend.settings import Id, LoadSettings
from loadtest.frontend.tally import EVENTS, RANK, Tally
from service.client import RankError

AGAIN = "/rank again"  # its name in Locust's figures

_CONNECTED = 8  # lines at the start
_POLL_S = 0.01
_FORBIDDEN = 403

Told = Callable[[str, float, int, str | None], None]
"""Of one request: its name, ms, bytes of the answer, and what was wrong."""


class FrontEnd:
    """Of one process.  Its methods are called in greenlets."""

    def __init__(self, url: str, settings: LoadSettings, tally: Tally, told: Told, number: int = 0) -> None:
        """number: of the process.  RankError when the service does not answer, ValueError when ids cannot be read."""
        seed = os.getpid() + time.time_ns() if settings.seed is None else settings.seed + number
        self.rng, self.settings, self.tally = Random(seed), settings, tally
        self.crowd, self._habits, self._clock = Crowd(settings, self.rng), Habits(self.rng), Clock(settings.now_ms)
        self._told, self._lines = told, Lines(url, settings.patience_s, settings.connections)
        self._counts_from = time.perf_counter() + settings.warm_up_s
        self._under_way = 0
        self.stopping = False  # set by others: begin nothing more
        with self._lines.line() as line:
            self._known = _known(line, settings)
            self.looks = settings.events and self._may_look(line)
        self._lines.open(min(_CONNECTED, settings.connections))

    def counts(self, due: float) -> bool:
        """Whether a request that was due then (perf_counter) is judged: the warm-up was over."""
        return due >= self._counts_from

    def rank(self, visit: Visit, due: float) -> list[Id]:
        """Rank for a visit; the authors shown, the best first, none when there is no answer."""
        asked = self._ask(visit)
        with self._sending(), self._lines.line() as line:
            try:
                answer = line.client.rank(
                    asked.user, asked.candidates, asked.page, now_ms=asked.now_ms, debug=asked.known_at_ms is not None
                )
            except RankError as error:
                self._failed(RANK, AGAIN if visit.told_at else RANK, due, line, error)
                return []
            done, size = line.done, line.bytes
        fault = wrong(asked, answer, self._known)
        if fault:
            self.tally.wrong[fault] += 1
        elif self.counts(due):
            self.tally.ms[RANK].append(1000 * (done - due))
            self.tally.degraded.update(answer.degraded)
            self.tally.degraded_answers += bool(answer.degraded)
            self.tally.fresh += asked.known_at_ms is not None
        self._told(AGAIN if visit.told_at else RANK, 1000 * (done - due), size, fault)
        return [row.author_id for row in answer.ranking[:SHOWN]]

    def watch(self, visit: Visit, shown: list[Id]) -> View | None:
        """Watch somebody and tell the service; None when the visit is over."""
        view = self._habits.view(shown) if shown and not self.stopping else None
        if view is None:
            return None
        gevent.sleep(self.settings.pace * view.seconds)
        if self.stopping or (self.settings.events and not self._tell(visit, view)):
            return None
        if not view.returns:
            return None
        gevent.sleep(self.settings.pace * view.pause_s)
        return view

    def wait(self) -> None:
        """For the last answers; what does not come is an error."""
        gevent.sleep(_POLL_S)  # what was begun already comes under way
        gives_up = time.perf_counter() + self.settings.patience_s
        while self._under_way and time.perf_counter() < gives_up:
            gevent.sleep(_POLL_S)
        if self._under_way:
            self.tally.errors["no answer by the end"] += self._under_way

    def close(self) -> None:
        self._lines.close()

    def _ask(self, visit: Visit) -> Ask:
        visible_s = self.settings.visible_ms / 1000
        looks = self.looks and visit.told_at is not None and time.perf_counter() >= visit.told_at + visible_s
        now_ms = self._clock.now_ms() if looks or self._clock.moved else None
        known_at_ms = visit.known_at_ms if looks else None
        return Ask(visit.user, self.crowd.candidates(), visit.page, now_ms, known_at_ms)

    def _tell(self, visit: Visit, view: View) -> bool:
        """Send the events of a view that ends now; whether they were accepted."""
        due, now_ms = time.perf_counter(), self._clock.now_ms()
        with self._sending(), self._lines.line() as line:
            try:
                line.client.send_events(self._habits.events(visit, view, now_ms))
            except RankError as error:
                self._failed(EVENTS, EVENTS, due, line, error)
                return False
            visit.known_at_ms, visit.told_at = now_ms, line.done
            if self.counts(due):
                self.tally.ms[EVENTS].append(1000 * (line.done - due))
            self._told(EVENTS, 1000 * (line.done - due), line.bytes, None)
        return True

    def _failed(self, route: str, name: str, due: float, line: Line, error: RankError) -> None:
        """A status 200 whose body is no answer is a wrong answer."""
        ms, reason = 1000 * (max(line.done, due) - due), _reason(error)
        if error.status in (200, 202):
            self.tally.wrong[f"{route}: {reason}"] += 1
        elif self.counts(due):
            self.tally.errors[f"{route}: {reason}"] += 1
        self._told(name, ms, line.bytes, reason)

    @contextmanager
    def _sending(self) -> Iterator[None]:
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1

    def _may_look(self, line: Line) -> bool:
        """Whether answers say how fresh they are: the key, if the service wants one, needs the scope `explain`."""
        try:
            line.client.rank(self.crowd.visit().user, [self.crowd.author()], debug=True)
        except RankError as error:
            if error.status == _FORBIDDEN:
                print("freshness is not checked: the key lacks the scope `explain`", flush=True)
                return False
            raise
        return True


def _known(line: Line, settings: LoadSettings) -> Known:
    version = line.client.version()
    others = filter(None, settings.models.split(","))
    return Known(frozenset({version.model_version, *others}), tuple(version.tasks))


def _reason(error: RankError) -> str:
    """The same for all errors of a kind, so that they can be counted."""
    if error.status is None:
        return f"no answer ({type(error).__name__})"
    return f"{error.status} {error.problem.get('title', '')}".rstrip()
