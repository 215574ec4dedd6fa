"""One ranking: parse, read the store once, score, calibrate, fuse, sort, serialise.

Letters: C candidates, T tasks.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import numpy as np
import orjson

from feature_store.matrices import UserInputs, candidate_matrix, user_inputs
from feature_store.reading.reader import StepForbidden
from feature_store.schema import MISSING
from feature_store.store import StoreAnswer
from feature_store.view import ModelView
from service.answer import Rows, json_ids, render
from service.ask import Ask
from service.contract import MAX_CANDIDATES
from service.drift import watch_drift
from service.entrance import Visit
from service.errors import EngineUnavailableError, ForbiddenStepError
from service.freshness import show_freshness
from service.lifecycle.serving import Serving
from service.lifecycle.shadow import Answered
from service.lifecycle.source import Source
from service.metrics import observe_ranking
from service.observe.trail import follow
from service.parse import Query, parse_query
from service.runtime import Runtime
from service.scoring.executors import ScorerClosedError, TooLateError
from service.scoring.scorer import Score
from service.stopwatch import Stopwatch

_WARM_UP_CANDIDATES = (1, 200, MAX_CANDIDATES)
_WARM_UP_MS = 60_000


@dataclass(frozen=True)
class Features:
    """What the towers read of a query, and what of it the store did not know."""

    found: StoreAnswer
    users: UserInputs  # U = 1
    candidates: np.ndarray  # [C, Fc] int64
    unknown: int  # candidates whose author is not known
    degraded: Sequence[str]


@dataclass(frozen=True)
class Ranked:
    """An answer, and what it was made of."""

    content: bytes  # JSON
    features: Features
    now_ms: int
    probabilities: np.ndarray  # [C, T] calibrated
    tasks: Sequence[str]


async def rank(runtime: Runtime, ask: Ask) -> bytes:
    """The JSON answer to a request.  ServiceError when it is no good request, or cannot be answered in time."""
    watch = Stopwatch()
    follow(watch)
    ranked = await _rank(runtime, ask, watch)
    features, probabilities = ranked.features, ranked.probabilities
    observe_ranking(watch.seconds, len(probabilities), features.unknown, features.degraded)
    watch_drift(features.found.user, features.users, ranked.now_ms, probabilities, ranked.tasks)
    return ranked.content


async def warm_up(runtime: Runtime) -> None:
    """The first run of each shape, of ONNX Runtime and of this code, is slow."""
    await runtime.scorer.warm_up()
    for count in _WARM_UP_CANDIDATES:
        body = orjson.dumps({"user_id": 0, "candidates": list(range(min(count, runtime.settings.max_candidates)))})
        with suppress(ForbiddenStepError):  # the store is away: it may come
            await _rank(runtime, Ask(body, "warm-up", deadline_ms=_WARM_UP_MS), Stopwatch())


async def _rank(runtime: Runtime, ask: Ask, watch: Stopwatch) -> Ranked:
    with runtime.entrance.enter(ask, runtime.scorer.costs) as visit:
        source = runtime.source
        query = parse_query(ask.body, source.store.schema.ids, runtime.settings.max_candidates)
        if query.debug:
            ask.caller.require("explain")
        visit.is_for(len(query.author_ids), query.deadline_ms)
        watch.lap("parse")
        watch.candidates = len(query.author_ids)
        serving = runtime.serving.choose(query.user_id)
        watch.model_version, watch.arm = serving.model.version, serving.arm
        with serving.use():
            ranked = await _answer(runtime, source, serving, query, visit, ask.request_id, watch)
        visit.took(watch.own_s())
    return ranked


async def _answer(
    runtime: Runtime, source: Source, serving: Serving, query: Query, visit: Visit, request_id: str, watch: Stopwatch
) -> Ranked:
    """By one model, from the first step to the last."""
    now_ms = int(1000 * time.time()) if query.now_ms is None else query.now_ms
    features = await _read(source, serving, query, now_ms, visit)
    watch.lap("store")
    watch.degraded = features.degraded
    score = await _score(serving, features, visit)
    watch.lap_scored(score)
    rows = _best(source, serving, query, features, score.probabilities)
    watch.lap("formula")
    debug = show_freshness(features.found.user, features.users, now_ms) if query.debug else None
    model, timing = serving.model, watch.timing_ms()
    content = render(request_id, model.version, model.tasks, rows, features.degraded, timing, debug, serving.arm)
    watch.lap("serialise")
    if (shadow := runtime.serving.shadow) is not None:
        inputs = partial(_inputs, query=query, found=features.found, now_ms=now_ms)
        shadow.offer(inputs, Answered(score.probabilities, model.tasks, serving.formula))
    return Ranked(content, features, now_ms, score.probabilities, model.tasks)


async def _read(source: Source, serving: Serving, query: Query, now_ms: int, visit: Visit) -> Features:
    """A store that fails makes an answer with less in it, not an error, but for steps that a setting forbids."""
    live_ids = None if (query.live_ids == MISSING).all() else query.live_ids
    try:
        with serving.scorer.coming():
            reading = await source.reader.read(query.user_id, query.author_ids, live_ids, visit.store_s())
    except StepForbidden as error:
        raise ForbiddenStepError(str(error)) from error
    visit.has_read()
    found = reading.found
    users, candidates, unknown = _matrices(serving.model.view, query, found, now_ms)
    words: list[str] = list(reading.degraded)
    if not (users.video_length[0] or users.live_length[0] or found.corrupt or "no_history" in words):
        words.append("no_history")
    missing = int(np.count_nonzero(unknown))
    if missing and "unknown_authors" not in words:
        words.append("unknown_authors")
    return Features(found, users, candidates, missing, words)


async def _score(serving: Serving, features: Features, visit: Visit) -> Score:
    try:
        score = await serving.scorer.score(features.users, features.candidates, visit.deadline_at, visit.low)
    except ScorerClosedError as error:
        raise EngineUnavailableError(str(error)) from error
    except TooLateError as error:
        visit.was_late(error)
    visit.scored = True
    return score


def _matrices(
    view: ModelView, query: Query, found: StoreAnswer, now_ms: int
) -> tuple[UserInputs, np.ndarray, np.ndarray]:
    """The user, the candidates [C, Fc], and which of their authors are unknown [C]."""
    context = {} if query.page is None else {"page": query.page}
    users = user_inputs(view, found.user, query.user_id, context, now_ms)
    return users, *candidate_matrix(view, query.author_ids, query.live_ids, found.authors)


def _inputs(view: ModelView, query: Query, found: StoreAnswer, now_ms: int) -> tuple[UserInputs, np.ndarray]:
    """What another model reads of the same request."""
    users, candidates, _ = _matrices(view, query, found, now_ms)
    return users, candidates


def _best(source: Source, serving: Serving, query: Query, features: Features, probabilities: np.ndarray) -> Rows:
    """Best first, at most top_k.  probabilities [C, T], calibrated"""
    model = serving.model
    scores = serving.formula.score(probabilities, model.tasks)
    order = np.argsort(-scores, kind="stable")[: query.top_k]
    if source.store.schema.ids == "string":  # a hash means nothing to the client
        authors = [query.given_authors[row] for row in order.tolist()]
        lives = [query.given_lives[row] for row in order.tolist()]
    else:
        live_ids = _live_ids(model.view.columns("candidate"), features.candidates, query)
        authors, lives = json_ids(query.author_ids[order]), json_ids(live_ids[order])
    return Rows(authors, lives, scores[order], probabilities[order])


def _live_ids(columns: Sequence[str], candidates: np.ndarray, query: Query) -> np.ndarray:
    """The live rooms that were scored; a model that reads none scores the requested ones.  [C] int64"""
    return candidates[:, columns.index("live_id")] if "live_id" in columns else query.live_ids
