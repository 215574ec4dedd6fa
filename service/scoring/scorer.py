"""Scoring: features of one request in, probabilities out.

Letters: C candidates, Fc candidate columns.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from feature_store.matrices import UserInputs, user_inputs
from feature_store.schema import MISSING
from model.artifact.engine import Engine, Piece, Scored, UserState
from service.admission.cost import CostModel
from service.scoring.cache import Kept, StateCache
from service.scoring.executors import Executors, ScorerClosedError, TooLateError, bisect
from service.scoring.metrics import (
    count_busy,
    count_failure,
    keep_more,
    observe_run,
    observe_states,
    show_executors,
)
from service.scoring.policy import BatchPolicy, Job, Share

USER_TILES = 4  # what a run of the user tower costs, in tiles of 32 candidates (docs/decisions.md)
WARM_UP_CANDIDATES = (1, 50, 200, 500, 2000)
_WARM_UP_TOGETHER = 4  # requests for each executor, so that batches hold several

_log = logging.getLogger(__name__)


class NotProbabilitiesError(RuntimeError):
    """The model put out what cannot be answered; not a number, say."""


@dataclass(frozen=True)
class Score:
    """What became of a request, and how long it took."""

    probabilities: np.ndarray  # [C, tasks] float32, calibrated
    queue_s: float  # until an executor took it
    user_tower_s: float  # of the batch in which its state was made or found
    candidate_tower_s: float  # all the rest
    kept: bool  # its user's state was there already


class Scorer(Protocol):
    """Scores requests of any event loop."""

    costs: CostModel  # what this machine needs, for whoever admits

    async def score(
        self, users: UserInputs, candidates: np.ndarray, deadline_at: float = math.inf, low: bool = False
    ) -> Score:
        """users: U = 1;  candidates [C, Fc] int64, C >= 1;  deadline_at: of time.monotonic;  low: its priority.

        ScorerClosedError after `close`, TooLateError, and what the engine raises.
        """

    def coming(self) -> AbstractContextManager[None]:
        """Inside is what has to be read before `score`, which follows without another wait, or not at all."""

    async def warm_up(self) -> None:
        """Run the shapes that traffic has: the first run of each is slow."""

    async def close(self) -> None:
        """What runs is finished; what waits gets ScorerClosedError."""


@dataclass(eq=False, kw_only=True)
class _Request(Job):
    users: UserInputs
    matrix: np.ndarray  # [C, Fc] int64
    key: bytes | None
    kept: Kept | None
    future: asyncio.Future[Score]
    submitted: float
    started: float = 0.0  # 0 until a batch took it
    user_tower_s: float = 0.0
    state: UserState | None = None
    parts: list[tuple[int, np.ndarray]] = field(default_factory=list)  # first candidate, probabilities


Shares = Sequence[Share[_Request]]
Part = tuple[np.ndarray, UserState, float]  # probabilities of a share, state of its user, seconds of the user tower


class LocalScorer:
    """Over an engine in this process: batches by `policy`, run by `executors`, states of users kept in `cache`."""

    def __init__(
        self, engine: Engine, executors: int = 1, tile: int = 32, batch_tiles: int = 64, cache_bytes: int = 0
    ) -> None:
        """tile, batch_tiles: of the policy;  cache_bytes: of user states, 0 keeps none."""
        self.costs = CostModel(max(1, executors))
        self._costs_lock = threading.Lock()
        self._engine, self._tile, self._count = engine, tile, max(1, executors)
        if engine.provider != "cpu":  # a device's states are rows of a pool; the other half is for requests under way
            cache_bytes = min(cache_bytes, engine.options.state_slots // 2 * engine.state_bytes)
        self._cache = StateCache(engine.version, engine.view.lag_quantum_s, engine.state_bytes, cache_bytes)
        policy = BatchPolicy[_Request](tile, batch_tiles, USER_TILES)
        self._executors = Executors(policy, executors, self._run, self._refuse_late, self._tile_s)
        show_executors(self._count)

    async def score(
        self, users: UserInputs, candidates: np.ndarray, deadline_at: float = math.inf, low: bool = False
    ) -> Score:
        request = self._request(users, candidates, deadline_at, low)
        self._executors.add(request)
        try:
            return await request.future
        except asyncio.CancelledError:  # nobody waits for it any more
            self._executors.drop(request)
            raise

    def coming(self) -> AbstractContextManager[None]:
        return self._executors.coming()

    async def warm_up(self) -> None:
        for size in WARM_UP_CANDIDATES:
            await self._score_nobodies([size] * self._count)
        await self._score_nobodies([200] * (_WARM_UP_TOGETHER * self._count))
        await self._score_nobodies([*WARM_UP_CANDIDATES] * self._count)
        keep_more(-self._cache.clear())

    async def close(self) -> None:
        _answer((request, ScorerClosedError("the service is stopping")) for request in self._executors.close())
        await asyncio.to_thread(self._executors.join)
        keep_more(-self._cache.clear())
        vars(self).pop("_engine", None)  # what refers to itself in a circle, as this does, is never freed once frozen

    def busy_s(self) -> float:
        """How long the batch that has run longest has been running; 0 when none runs."""
        return self._executors.busy_s()

    async def _score_nobodies(self, sizes: Sequence[int]) -> None:
        view, requests = self._engine.view, []
        for number, size in enumerate(sizes):
            unknown = np.full((size, len(view.columns("candidate"))), MISSING)
            requests.append(self.score(user_inputs(view, None, number, {}, 0), unknown))
        await asyncio.gather(*requests)

    def _request(self, users: UserInputs, candidates: np.ndarray, deadline_at: float, low: bool) -> _Request:
        if not len(candidates):
            raise ValueError("candidates: at least one must be given")
        key = self._cache.key(users)
        kept = self._cache.get(key)
        return _Request(
            candidates=len(candidates),
            has_state=kept is not None,
            low=low,
            deadline=deadline_at,
            users=users,
            matrix=candidates,
            key=key,
            kept=kept,
            state=None if kept is None else kept.state,
            future=asyncio.get_running_loop().create_future(),
            submitted=time.perf_counter(),
        )

    def _run(self, shares: Shares) -> None:
        """In a thread of the executors."""
        began = time.perf_counter()
        try:
            self._start(shares)
            outcomes = bisect(shares, self._score_together, count_failure)
            self._finish(list(zip(shares, outcomes, strict=True)))
        except Exception as error:
            _log.exception("a batch could not be answered")
            self._refuse([(share.job, error) for share in shares])
        finally:
            count_busy(time.perf_counter() - began)

    def _start(self, shares: Shares) -> None:
        """A state may have been kept since the request came."""
        now, fresh = time.perf_counter(), [share.job for share in shares if not share.job.started]
        for request in fresh:
            request.started = now
            if request.state is None and (kept := self._cache.get(request.key)):
                request.kept, request.state = kept, kept.state
        if fresh and fresh[0].key is not None:
            ages = [self._cache.age_s(request.kept) for request in fresh if request.kept]
            observe_states(ages, len(fresh) - len(ages))

    def _score_together(self, shares: Shares) -> list[Part]:
        """One run of the engine; requests of one user whose state is not known share a piece."""
        groups: dict[object, list[Share[_Request]]] = {}
        for share in shares:
            groups.setdefault(share.job.key or share.job, []).append(share)
        scored, cost = self._engine.run([_piece(group) for group in groups.values()])
        calibrated = self._calibrated([piece.probabilities for piece in scored])
        self._keep(groups.values(), scored)
        tiles = sum(-(-(share.stop - share.start) // self._tile) for share in shares)
        observe_run(cost, tiles, len(shares))
        with self._costs_lock:
            self.costs.observe_batch(tiles, cost.candidate_tower_s, cost.users, cost.user_tower_s, time.monotonic())
        parts: dict[int, Part] = {}
        for group, piece, probabilities in zip(groups.values(), scored, calibrated, strict=True):
            for share, part in zip(group, _split(probabilities, group), strict=True):
                parts[id(share)] = (part, piece.state, cost.user_tower_s)
        return [parts[id(share)] for share in shares]

    def _calibrated(self, scored: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Of a batch at once: [C, tasks] each.  NotProbabilitiesError."""
        joined = scored[0] if len(scored) == 1 else np.concatenate(scored)
        if not (joined.min() >= 0 and joined.max() <= 1):  # false of NaN too
            raise NotProbabilitiesError(f"model {self._engine.version}: not all outputs are between 0 and 1")
        calibrated = self._engine.calibration.apply(joined)
        return [calibrated] if len(scored) == 1 else np.split(calibrated, np.cumsum([len(p) for p in scored[:-1]]))

    def _keep(self, groups: Iterable[Shares], scored: Sequence[Scored]) -> None:
        made = [(group[0].job, piece.state) for group, piece in zip(groups, scored, strict=True)]
        made = [(request, state) for request, state in made if request.state is None and request.key]
        if more := sum(self._cache.put(request.key, state) for request, state in made):
            keep_more(more)

    def _finish(self, outcomes: Sequence[tuple[Share[_Request], Part | Exception]]) -> None:
        scored, refused = [], []
        for share, outcome in outcomes:
            request = share.job
            if isinstance(outcome, Exception):
                refused.append((request, outcome))
                continue
            probabilities, state, user_tower_s = outcome
            request.parts.append((share.start, probabilities))
            if share.start == 0:
                request.state, request.user_tower_s = state, user_tower_s
            scored.append(share)
        complete = self._executors.finish(scored)
        now = time.perf_counter()
        _answer([(request, _score(request, now)) for request in complete])
        self._refuse(refused)

    def _refuse_late(self, requests: Sequence[_Request]) -> None:
        _answer((request, TooLateError("its deadline came before its turn")) for request in requests)

    def _tile_s(self) -> float:
        return self.costs.tile_s * self.costs.belief(time.monotonic())

    def _refuse(self, refused: Sequence[tuple[_Request, Exception]]) -> None:
        for request, _ in refused:
            self._executors.drop(request)
        _answer(refused)


def _piece(group: Shares) -> Piece:
    """Candidates of one user."""
    first = group[0]
    request = first.job
    rows = [share.job.matrix[share.start : share.stop] for share in group]
    users = request.users if request.state is None else None
    return Piece(users, request.state, rows[0] if len(rows) == 1 else np.concatenate(rows))


def _split(probabilities: np.ndarray, group: Shares) -> list[np.ndarray]:
    """Those of each share of a piece."""
    if len(group) == 1:
        return [probabilities]
    ends = np.cumsum([share.stop - share.start for share in group])
    return np.split(probabilities, ends[:-1])


def _score(request: _Request, now: float) -> Score:
    parts = [probabilities for _, probabilities in sorted(request.parts, key=lambda part: part[0])]
    return Score(
        probabilities=parts[0] if len(parts) == 1 else np.concatenate(parts),
        queue_s=request.started - request.submitted,
        user_tower_s=request.user_tower_s,
        candidate_tower_s=now - request.started - request.user_tower_s,
        kept=request.kept is not None,
    )


def _answer(outcomes: Iterable[tuple[_Request, Score | Exception]]) -> None:
    """Tell those who wait, each loop once."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Score], Score | Exception]]] = {}
    for request, outcome in outcomes:
        by_loop.setdefault(request.future.get_loop(), []).append((request.future, outcome))
    for loop, answers in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve, answers)
        except RuntimeError:  # the loop was closed: nobody waits
            _log.warning("%d answers of a closed event loop were dropped", len(answers))


def _resolve(answers: Sequence[tuple[asyncio.Future[Score], Score | Exception]]) -> None:
    for future, outcome in answers:
        if future.done():
            continue
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
