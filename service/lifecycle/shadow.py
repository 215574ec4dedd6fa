"""A candidate that scores a share of the requests once more, after the answer, when nobody else wants the processor.

Letters: C candidates, Fc candidate columns, T tasks, S tasks that both models have.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from feature_store.matrices import UserInputs
from feature_store.view import ModelView
from model.artifact.engine import Piece
from model.artifact.formula import Formula
from service.engines import Loaded
from service.lifecycle.quiet import lower_priority
from service.lifecycle.shadow_metrics import count_dropped, count_failed, observe_divergence

_TOP = 10

_log = logging.getLogger(__name__)

Inputs = Callable[[ModelView], tuple[UserInputs, np.ndarray]]
"""Makes what a model reads of a request: its user (U = 1), its candidates [C, Fc]."""


@dataclass(frozen=True)
class Divergence:
    """Between two models, on one request."""

    mean: dict[str, float]  # by task, of the absolute differences of the probabilities
    greatest: dict[str, float]
    overlap: float  # share of the first ten that both would show


@dataclass(frozen=True)
class Answered:
    """What was answered."""

    probabilities: np.ndarray  # [C, T] calibrated
    tasks: tuple[str, ...]
    formula: Formula


class Shadow:
    """For one event loop.  One request at a time; what comes meanwhile is dropped, and counted."""

    def __init__(self, candidate: Loaded, share: float) -> None:
        self._candidate, self._share = candidate, share
        self._owed = 0.0  # requests
        self._running: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "shadow", initializer=lower_priority)

    def offer(self, inputs: Inputs, answered: Answered) -> None:
        """A request that was answered: scored again if it is among the share, and nothing else is."""
        self._owed += self._share
        if self._owed < 1:
            return
        self._owed -= 1
        if self._running is not None:
            count_dropped()
            return
        self._running = asyncio.get_running_loop().create_task(self._score(inputs, answered))

    async def close(self) -> None:
        """When nothing is offered any more."""
        if self._running is not None:
            await self._running
        self._thread.shutdown(wait=False)

    async def _score(self, inputs: Inputs, answered: Answered) -> None:
        loop, model = asyncio.get_running_loop(), self._candidate.model
        try:
            made = await loop.run_in_executor(self._thread, inputs, model.view)
            probabilities = await self._probabilities(*made)
            found = await loop.run_in_executor(self._thread, diverge, answered, probabilities, model.tasks)
            observe_divergence(found.mean, found.greatest, found.overlap)
        except Exception as error:  # the candidate's, whatever it is
            _log.warning("shadow model %s failed: %s", model.version, error)
            count_failed()
        finally:
            self._running = None

    async def _probabilities(self, users: UserInputs, candidates: np.ndarray) -> np.ndarray:
        """Calibrated, [C, T] of the candidate."""
        engine = self._candidate.engine
        if engine is None or engine.provider != "cpu":  # its work is not this process', or not the processor's
            return (await self._candidate.scorer.score(users, candidates)).probabilities

        def run() -> np.ndarray:
            scored, _ = engine.run([Piece(users, None, candidates)])
            return self._candidate.model.calibration.apply(scored[0].probabilities)

        return await asyncio.get_running_loop().run_in_executor(self._thread, run)


def diverge(answered: Answered, probabilities: np.ndarray, tasks: tuple[str, ...]) -> Divergence:
    """probabilities [C, T] of the candidate, whose tasks these are; tasks that only one of them has do not count."""
    common = [task for task in answered.tasks if task in tasks]
    mine = answered.probabilities[:, [answered.tasks.index(task) for task in common]]  # [C, S]
    its = probabilities[:, [tasks.index(task) for task in common]]  # [C, S]
    difference = np.abs(mine - its)
    first, second = (_top(answered.formula, one, tuple(common)) for one in (mine, its))
    return Divergence(
        dict(zip(common, difference.mean(axis=0).tolist(), strict=True)),
        dict(zip(common, difference.max(axis=0).tolist(), strict=True)),
        len(first & second) / len(first),
    )


def _top(formula: Formula, probabilities: np.ndarray, tasks: tuple[str, ...]) -> set[int]:
    """Rows that are shown first.  probabilities [C, S]"""
    scores = formula.score(probabilities, tasks)
    return set(np.argsort(-scores, kind="stable")[:_TOP].tolist())
