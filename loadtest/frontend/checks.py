"""Whether an answer is a right one: all candidates once, in order, probabilities of the model's tasks, and fresh."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite

from feature_store.reading.settings import WORDS
from loadtest.frontend.crowd import Ask
from loadtest.frontend.settings import Id
from service.contract import MAX_EXACT, RankAnswer, Ranked

UNTOLD = frozenset({"stale_history", "no_history", "corrupt_history"})
"""What it says when the answer was made without what the store has of the user."""


@dataclass(frozen=True)
class Known:
    """Who may answer, and about what."""

    models: frozenset[str]
    tasks: tuple[str, ...]


def wrong(asked: Ask, answer: RankAnswer, known: Known) -> str | None:
    """What is wrong with an answer 200; None when it is right."""
    if answer.model_version not in known.models:
        return f"the model {answer.model_version} is none of those that serve"
    if unknown := sorted(set(answer.degraded).difference(WORDS)):
        return f"degraded: {unknown[0]!r} is no word that the service has"
    return (
        _wrong_authors(asked, answer.ranking)
        or _wrong_order(answer.ranking)
        or _wrong_numbers(answer.ranking, known.tasks)
        or _not_fresh(asked, answer)
    )


def _wrong_authors(asked: Ask, rows: list[Ranked]) -> str | None:
    if len(rows) != len(asked.candidates):
        return "not as many authors as were asked for"
    if {row.author_id for row in rows} != set(_as_answered(asked.candidates)):
        return "the authors are not those that were asked for"
    return None


def _as_answered(ids: Iterable[Id]) -> Iterable[Id]:
    """Integers beyond 2^53 come as decimal strings, smaller ones as numbers, however they were sent."""
    return (str(id_) if isinstance(id_, int) and abs(id_) > MAX_EXACT else id_ for id_ in ids)


def _wrong_order(rows: list[Ranked]) -> str | None:
    scores = [row.score for row in rows]
    if not all(map(isfinite, scores)):
        return "a score is no number"
    if any(later > earlier for earlier, later in pairwise(scores)):
        return "not sorted by score"
    return None


def _wrong_numbers(rows: list[Ranked], tasks: tuple[str, ...]) -> str | None:
    for row in rows:
        if tuple(row.xtr) != tasks:
            return "the tasks are not those of /version"
        for probability in row.xtr.values():
            if not 0.0 <= probability <= 1.0:
                return "a probability is outside 0..1"
    return None


def _not_fresh(asked: Ask, answer: RankAnswer) -> str | None:
    """By the age of the newest view that the store has: at most that of the view that the service was told of."""
    if asked.known_at_ms is None or asked.now_ms is None or not UNTOLD.isdisjoint(answer.degraded):
        return None
    if answer.debug is None:
        return "no `debug`, although it was asked for"
    age_ms = answer.debug.live.newest_age_ms
    if age_ms is None or age_ms > asked.now_ms - asked.known_at_ms:
        return "a view is not known that was accepted before"
    return None
