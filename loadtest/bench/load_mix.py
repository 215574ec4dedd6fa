"""Of `farm bench load`: the requests that Locust's visitors make, as bodies for the load generator."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import orjson

from loadtest.frontend.crowd import Crowd, Visit
from loadtest.frontend.habits import SHOWN, Habits
from loadtest.frontend.settings import LoadSettings

_AWAY = 500  # rankings of others until somebody ranks again, about as many as at saturation
_SEED = 1


@dataclass
class Mix:
    """Rankings and the events between them, each used once until all were."""

    rankings: Path
    events: Path
    counts: tuple[int, int]  # of each
    next: tuple[int, int] = (0, 0)

    @property
    def events_per_ranking(self) -> float:
        """Requests of one kind for one of the other."""
        return self.counts[1] / self.counts[0]

    def advance(self, rankings: int, events: int) -> None:
        """So many were sent."""
        self.next = (self.next[0] + rankings) % self.counts[0], (self.next[1] + events) % self.counts[1]


def write_mix(folder: Path, settings: LoadSettings, rankings: int) -> Mix:
    """Bodies in the order and the proportion in which an open loop of these settings sends them."""
    files = folder / "rankings.jsonl", folder / "events.jsonl"
    counts = [0, 0]
    with files[0].open("wb") as ranked, files[1].open("wb") as told:
        for kind, body in _bodies(settings, rankings):
            (ranked, told)[kind].write(orjson.dumps(body) + b"\n")
            counts[kind] += 1
    return Mix(*files, (counts[0], counts[1]))


def _bodies(settings: LoadSettings, rankings: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """0 and a ranking, or 1 and events."""
    rng = Random(_SEED)
    crowd, habits = Crowd(settings, rng), Habits(rng)
    returning: deque[Visit] = deque()
    now_ms = int(time.time() * 1000)
    for _ in range(rankings):
        visit = returning.popleft() if len(returning) > _AWAY else crowd.visit()
        candidates = crowd.candidates()
        body = {"user_id": visit.user, "candidates": candidates, "page": visit.page}
        yield 0, body if visit.known_at_ms is None else {**body, "now_ms": now_ms, "debug": True}
        if (view := habits.view(candidates[:SHOWN])) is None:
            continue
        yield 1, {"events": habits.events(visit, view, now_ms)}
        if view.returns:
            visit.known_at_ms = now_ms
            returning.append(visit)
