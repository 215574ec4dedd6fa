"""One ranking: parse, read the store once, score, calibrate, fuse, sort, serialise.

Letters: C candidates, T tasks.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import orjson

from feature_store.matrices import UserInputs, candidate_matrix, user_inputs
from feature_store.schema import MISSING
from feature_store.store import StoreAnswer, StoreError
from service.answer import Rows, json_ids, render
from service.contract import MAX_CANDIDATES
from service.errors import EngineUnavailableError
from service.freshness import show_freshness
from service.metrics import observe_ranking
from service.parse import Query, parse_query
from service.runtime import Runtime
from service.scoring.executors import ScorerClosedError
from service.scoring.scorer import Score

_SHOWN_STAGES = ("store", "queue", "user_tower", "candidate_tower")

_WARM_UP_CANDIDATES = (1, 200, MAX_CANDIDATES)

_log = logging.getLogger(__name__)


class Stopwatch:
    """Seconds by stage, one after the other."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        """The time since the last lap was `stage`."""
        now = time.perf_counter()
        self.seconds[stage], self._last = now - self._last, now

    def lap_scored(self, score: Score) -> None:
        """The time since the last lap was the queue's, the towers', and that of the way to them and back."""
        self.lap("hand_over")
        stages = {
            "queue": score.queue_s,
            "user_tower": score.user_tower_s,
            "candidate_tower": score.candidate_tower_s,
        }
        self.seconds["hand_over"] -= sum(stages.values())
        self.seconds.update(stages)

    def timing_ms(self) -> dict[str, float]:
        shown = {stage: round(1000 * self.seconds[stage], 3) for stage in _SHOWN_STAGES}
        return {**shown, "total": round(1000 * (time.perf_counter() - self._start), 3)}


@dataclass(frozen=True)
class Features:
    """What the towers read of a query, and what the store did not know."""

    found: StoreAnswer
    users: UserInputs  # U = 1
    candidates: np.ndarray  # [C, Fc] int64
    unknown_authors: bool
    now_ms: int


async def rank(runtime: Runtime, body: bytes, request_id: str) -> bytes:
    """The JSON answer to the JSON request `body`.  ServiceError when it is no good request."""
    watch = Stopwatch()
    answer, degraded = await _answer(runtime, body, request_id, watch)
    observe_ranking(watch.seconds, degraded)
    return answer


async def warm_up(runtime: Runtime) -> None:
    """The first run of each shape, of ONNX Runtime and of this code, is slow."""
    await runtime.scorer.warm_up()
    for count in _WARM_UP_CANDIDATES:
        body = orjson.dumps({"user_id": 0, "candidates": list(range(min(count, runtime.settings.max_candidates)))})
        await _answer(runtime, body, "warm-up", Stopwatch())


async def _answer(runtime: Runtime, body: bytes, request_id: str, watch: Stopwatch) -> tuple[bytes, list[str]]:
    query = parse_query(body, runtime.store.schema.ids, runtime.settings.max_candidates)
    watch.lap("parse")
    features = _features(runtime, query, await _read(runtime, query))
    watch.lap("store")
    try:
        score = await runtime.scorer.score(features.users, features.candidates)
    except ScorerClosedError as error:
        raise EngineUnavailableError(str(error)) from error
    watch.lap_scored(score)
    rows = _best(runtime, query, features, score.probabilities)
    degraded = _degraded(features)
    watch.lap("formula")
    content = _render(runtime, query, features, rows, degraded, request_id, watch)
    watch.lap("serialise")
    return content, degraded


async def _read(runtime: Runtime, query: Query) -> StoreAnswer:
    """A store that fails is an answer with less in it, not an error."""
    live_ids = None if (query.live_ids == MISSING).all() else query.live_ids
    try:
        return await runtime.store.read(query.user_id, query.author_ids, live_ids)
    except StoreError as error:
        _log.error("answering without the store: %s", error)
        return StoreAnswer(None, {}, False)


def _features(runtime: Runtime, query: Query, found: StoreAnswer) -> Features:
    view = runtime.model.view
    now_ms = int(1000 * time.time()) if query.now_ms is None else query.now_ms
    context = {} if query.page is None else {"page": query.page}
    users = user_inputs(view, found.user, query.user_id, context, now_ms)
    candidates, unknown = candidate_matrix(view, query.author_ids, query.live_ids, found.authors)
    return Features(found, users, candidates, bool(unknown.any()), now_ms)


def _best(runtime: Runtime, query: Query, features: Features, probabilities: np.ndarray) -> Rows:
    """Best first, at most top_k.  probabilities [C, T], calibrated"""
    engine = runtime.model
    scores = runtime.formula.score(probabilities, engine.tasks)
    order = np.argsort(-scores, kind="stable")[: query.top_k]
    if runtime.store.schema.ids == "string":  # a hash means nothing to the client
        authors = [query.given_authors[row] for row in order.tolist()]
        lives = [query.given_lives[row] for row in order.tolist()]
    else:
        live_ids = _live_ids(engine.view.columns("candidate"), features.candidates, query)
        authors, lives = json_ids(query.author_ids[order]), json_ids(live_ids[order])
    return Rows(authors, lives, scores[order], probabilities[order])


def _render(
    runtime: Runtime,
    query: Query,
    features: Features,
    rows: Rows,
    degraded: Sequence[str],
    request_id: str,
    watch: Stopwatch,
) -> bytes:
    debug = show_freshness(features.found.user, features.users, features.now_ms) if query.debug else None
    engine = runtime.model
    return render(request_id, engine.version, engine.tasks, rows, degraded, watch.timing_ms(), debug)


def _degraded(features: Features) -> list[str]:
    users, words = features.users, []
    if features.found.corrupt:
        words.append("corrupt_history")
    elif users.video_length[0] + users.live_length[0] == 0:
        words.append("no_history")
    if features.unknown_authors:
        words.append("unknown_authors")
    return words


def _live_ids(columns: Sequence[str], candidates: np.ndarray, query: Query) -> np.ndarray:
    """The live rooms that were scored; a model that reads none scores the requested ones.  [C] int64"""
    return candidates[:, columns.index("live_id")] if "live_id" in columns else query.live_ids
