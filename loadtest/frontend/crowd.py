"""Who visits, and what a recommender's retrieval gives them to rank: Zipf's law for users and for authors."""

from __future__ import annotations

import time
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random

import numpy as np

from loadtest.frontend.settings import Id, LoadSettings

ZIPF_EXPONENT = 1.0  # of users; assumed, as in the other benches
AUTHOR_EXPONENT = 0.8  # of authors among candidates: retrieval spreads wider than views do
PAGES = 4  # where rankings are shown

_SLATES = 256  # lists of candidates that are made in advance, because drawing one takes longer than sending it
_POPULARITY_SEED = 0  # who is popular: the same in every process


@dataclass
class Visit:
    """Somebody at a screen."""

    user: Id
    page: int
    known_at_ms: int | None = None  # of what they watched last, once the service has it
    told_at: float | None = None  # perf_counter when the service had it


@dataclass(frozen=True)
class Ask:
    """One ranking that is asked for."""

    user: Id
    candidates: list[Id]
    page: int
    now_ms: int | None  # None: the clock of the service
    known_at_ms: int | None  # of a view that the ranking must know of; None: of none in particular


class Clock:
    """Time as the load's requests and events tell it."""

    def __init__(self, begins_ms: int | None) -> None:
        """begins_ms: now; None: the machine's clock."""
        self.moved = begins_ms is not None
        self._ahead_ms = 0 if begins_ms is None else begins_ms - time.time() * 1000

    def now_ms(self) -> int:
        return int(time.time() * 1000 + self._ahead_ms)


class Crowd:
    """Draws visits and candidates."""

    def __init__(self, settings: LoadSettings, rng: Random) -> None:
        """ValueError when the ids cannot be read."""
        users, authors = settings.known_ids()
        shares = settings.candidate_shares
        self._rng = rng
        self._users = _shuffled(users)
        self._popularity = list(accumulate((1 + rank) ** -ZIPF_EXPONENT for rank in range(len(users))))
        self._counts, self._shares = list(shares), list(accumulate(shares.values()))
        self._authors = _shuffled(authors)
        self._slates = self._draw_slates(max(shares))

    def visit(self) -> Visit:
        """Somebody comes."""
        drawn = bisect(self._popularity, self._rng.random() * self._popularity[-1])
        return Visit(self._users[min(drawn, len(self._users) - 1)], self._rng.randrange(PAGES))

    def candidates(self) -> list[Id]:
        """Distinct authors."""
        (count,) = self._rng.choices(self._counts, cum_weights=self._shares)
        return self._rng.choice(self._slates)[:count]

    def author(self) -> Id:
        """One, as popular as authors are."""
        return self._rng.choice(self._slates)[0]

    def _draw_slates(self, longest: int) -> list[list[Id]]:
        """Weighted draws without replacement, in their order, so that the first of a slate are such a draw too.

        Efraimidis and Spirakis (2006): of exponential times at rates that are the weights, the first ones.
        """
        rng = np.random.default_rng(self._rng.getrandbits(64))
        mean = np.arange(1, len(self._authors) + 1) ** AUTHOR_EXPONENT  # [A]
        numbers = (_first(rng.exponential(mean), longest) for _ in range(_SLATES))
        return [[self._authors[number] for number in slate.tolist()] for slate in numbers]


def _first(times: np.ndarray, count: int) -> np.ndarray:
    """Numbers of the least `count` times, ascending.  times [A]"""
    if count < len(times):
        least = np.argpartition(times, count)[:count]
        return np.asarray(least[np.argsort(times[least])])
    return np.argsort(times)


def _shuffled(ids: Sequence[Id]) -> list[Id]:
    return Random(_POPULARITY_SEED).sample(ids, len(ids))
