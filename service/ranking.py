"""One ranking: parse, read the store once, run both towers off the event loop, calibrate, fuse, sort, serialise.

Letters: C candidates, T tasks.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import orjson

from feature_store.matrices import candidate_matrix, user_inputs
from feature_store.schema import MISSING
from feature_store.store import StoreAnswer, StoreError
from service.contract import MAX_CANDIDATES, MAX_EXACT
from service.freshness import show_freshness
from service.metrics import observe_ranking
from service.parse import GivenId, Query, parse_query
from service.runtime import Runtime

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

    def timing_ms(self) -> dict[str, float]:
        shown = {stage: round(1000 * self.seconds[stage], 3) for stage in _SHOWN_STAGES}
        return {**shown, "total": round(1000 * (time.perf_counter() - self._start), 3)}


@dataclass(frozen=True)
class Ranking:
    """What the engine made of a query, in the order of the query."""

    probabilities: np.ndarray  # [C, T] float32, calibrated
    scores: np.ndarray  # [C] float32
    live_ids: np.ndarray  # [C] int64, MISSING where not known
    order: np.ndarray  # rows, best first, at most top_k
    degraded: list[str]
    debug: dict[str, object] | None  # when asked for


async def rank(runtime: Runtime, body: bytes, request_id: str) -> bytes:
    """The JSON answer to the JSON request `body`.  ServiceError when it is no good request."""
    watch = Stopwatch()
    answer, degraded = await _answer(runtime, body, request_id, watch)
    observe_ranking(watch.seconds, degraded)
    return answer


async def warm_up(runtime: Runtime) -> None:
    """Rank for nobody, on every executor: the first run of each size, of ONNX Runtime and of this code, is slow."""
    for count in _WARM_UP_CANDIDATES:
        body = orjson.dumps({"user_id": 0, "candidates": list(range(min(count, runtime.settings.max_candidates)))})
        callers = range(runtime.settings.executor_count)
        await asyncio.gather(*(_answer(runtime, body, "warm-up", Stopwatch()) for _ in callers))


async def _answer(runtime: Runtime, body: bytes, request_id: str, watch: Stopwatch) -> tuple[bytes, list[str]]:
    query = parse_query(body, runtime.store.schema.ids, runtime.settings.max_candidates)
    watch.lap("parse")
    found = await _read(runtime, query)
    watch.lap("store")
    return await asyncio.get_running_loop().run_in_executor(
        runtime.pool, _compute, runtime, query, found, request_id, watch
    )


async def _read(runtime: Runtime, query: Query) -> StoreAnswer:
    """A store that fails is an answer with less in it, not an error."""
    live_ids = None if (query.live_ids == MISSING).all() else query.live_ids
    try:
        return await runtime.store.read(query.user_id, query.author_ids, live_ids)
    except StoreError as error:
        _log.error("answering without the store: %s", error)
        return StoreAnswer(None, {}, False)


def _compute(
    runtime: Runtime, query: Query, found: StoreAnswer, request_id: str, watch: Stopwatch
) -> tuple[bytes, list[str]]:
    """All that costs time, in a thread of the pool."""
    watch.lap("queue")
    ranking = _rank(runtime, query, found, watch)
    answer = {
        "request_id": request_id,
        "model_version": runtime.engine.version,
        "ranking": _rows(runtime, query, ranking),
        "degraded": ranking.degraded,
        "timing_ms": watch.timing_ms(),
    }
    if ranking.debug is not None:
        answer["debug"] = ranking.debug
    content = orjson.dumps(answer)
    watch.lap("serialise")
    return content, ranking.degraded


def _rank(runtime: Runtime, query: Query, found: StoreAnswer, watch: Stopwatch) -> Ranking:
    engine, view = runtime.engine, runtime.engine.view
    now_ms = int(1000 * time.time()) if query.now_ms is None else query.now_ms
    context = {} if query.page is None else {"page": query.page}
    users = user_inputs(view, found.user, query.user_id, context, now_ms)
    state = engine.user_state(users)
    watch.lap("user_tower")
    candidates, unknown = candidate_matrix(view, query.author_ids, query.live_ids, found.authors)
    probabilities = engine.score_user(state, candidates)
    watch.lap("candidate_tower")
    probabilities = engine.calibration.apply(probabilities)
    scores = runtime.formula.score(probabilities, engine.tasks)
    order = np.argsort(-scores, kind="stable")[: query.top_k]
    watch.lap("formula")
    events = int(users.video_length[0] + users.live_length[0])
    degraded = _degraded(found, events, bool(unknown.any()))
    debug = show_freshness(found.user, users, now_ms) if query.debug else None
    live_ids = _live_ids(view.columns("candidate"), candidates, query)
    return Ranking(probabilities, scores, live_ids, order, degraded, debug)


def _degraded(found: StoreAnswer, events: int, unknown_authors: bool) -> list[str]:
    words = []
    if found.corrupt:
        words.append("corrupt_history")
    elif events == 0:
        words.append("no_history")
    if unknown_authors:
        words.append("unknown_authors")
    return words


def _live_ids(columns: Sequence[str], candidates: np.ndarray, query: Query) -> np.ndarray:
    """The live rooms that were scored; a model that reads none scores the requested ones.  [C] int64"""
    return candidates[:, columns.index("live_id")] if "live_id" in columns else query.live_ids


def _rows(runtime: Runtime, query: Query, ranking: Ranking) -> list[dict[str, object]]:
    tasks, order = runtime.engine.tasks, ranking.order
    if runtime.store.schema.ids == "string":  # a hash means nothing to the client
        authors = [query.given_authors[row] for row in order.tolist()]
        lives = [query.given_lives[row] for row in order.tolist()]
    else:
        authors, lives = _json_ids(query.author_ids[order]), _json_ids(ranking.live_ids[order])
    scores, xtrs = ranking.scores[order].tolist(), ranking.probabilities[order].tolist()
    return [
        {"author_id": author, "live_id": live, "score": score, "xtr": dict(zip(tasks, xtr, strict=True))}
        for author, live, score, xtr in zip(authors, lives, scores, xtrs, strict=True)
    ]


def _json_ids(ids: np.ndarray) -> list[GivenId]:
    """null for MISSING, a decimal string beyond 2^53.  ids [C] int64"""
    values: list[GivenId] = ids.tolist()
    if ((ids >= -MAX_EXACT) & (ids <= MAX_EXACT)).all():
        return values
    return [None if v == MISSING else v if -MAX_EXACT <= v <= MAX_EXACT else str(v) for v in ids.tolist()]
