"""The candidate that scores requests again: how far it is, how often it is asked, what it never holds up."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import REGISTRY

from feature_store.matrices import UserInputs, user_inputs
from feature_store.schema import MISSING
from feature_store.view import ModelView
from model.artifact.formula import Formula
from service.engines import Loaded, Models
from service.lifecycle.shadow import Answered, Divergence, Shadow, diverge
from service.settings import Settings
from service.tasks import LocalModel

TASKS = ("ctr", "ltr")


def count(result: str) -> float:
    return REGISTRY.get_sample_value("farm_shadow_requests_total", {"result": result}) or 0.0


@pytest.fixture(scope="module")
def candidate(artifact: Path, store_url: str) -> Loaded:
    return Models(Settings(artifact=artifact, store=store_url), None).open(LocalModel("", artifact))


def inputs(view: ModelView) -> tuple[UserInputs, np.ndarray]:
    """Of 30 unknown authors."""
    return user_inputs(view, None, 1, {}, 0), np.full((30, len(view.columns("candidate"))), MISSING)


async def answered_by(candidate: Loaded) -> Answered:
    score = await candidate.scorer.score(*inputs(candidate.model.view))
    return Answered(score.probabilities, candidate.model.tasks, Formula())


def test_divergence_by_task_and_of_the_first_ten() -> None:
    mine = np.linspace(0.9, 0.1, 20, dtype=np.float32)[:, None].repeat(2, axis=1)  # row 0 is the best
    its = mine.copy()
    its[0] = 0.0  # it leaves the ten, and row 10 enters them
    its[5, 1] += 0.01
    found = diverge(Answered(mine, TASKS, Formula()), its, TASKS)
    assert found.overlap == 0.9
    assert found.greatest == pytest.approx({"ctr": 0.9, "ltr": 0.9})
    assert found.mean == pytest.approx({"ctr": 0.9 / 20, "ltr": 0.91 / 20})


def test_tasks_are_matched_by_name() -> None:
    mine = np.array([[0.1, 0.2], [0.3, 0.4]], np.float32)
    its = np.array([[0.5, 0.2, 0.1], [0.5, 0.4, 0.3]], np.float32)
    found = diverge(Answered(mine, TASKS, Formula()), its, ("gtr", "ltr", "ctr"))
    assert found == Divergence({"ctr": 0.0, "ltr": 0.0}, {"ctr": 0.0, "ltr": 0.0}, 1.0)


def test_a_candidate_that_is_the_same_does_not_differ(candidate: Loaded) -> None:
    async def check() -> None:
        shadow, before = Shadow(candidate, 1.0), count("scored")
        shadow.offer(inputs, await answered_by(candidate))
        await shadow.close()
        assert count("scored") == before + 1

    asyncio.run(check())
    for task in candidate.model.tasks:
        greatest = REGISTRY.get_sample_value("farm_shadow_max_difference_bucket", {"task": task, "le": "1e-05"})
        assert greatest == REGISTRY.get_sample_value("farm_shadow_max_difference_count", {"task": task})


def test_what_comes_while_it_is_busy_is_dropped(candidate: Loaded) -> None:
    async def check() -> None:
        shadow, answered = Shadow(candidate, 1.0), await answered_by(candidate)
        scored, dropped = count("scored"), count("dropped")
        for _ in range(5):
            shadow.offer(inputs, answered)
        await shadow.close()
        assert (count("scored"), count("dropped")) == (scored + 1, dropped + 4)

    asyncio.run(check())


def test_the_share_is_exact(candidate: Loaded) -> None:
    async def check() -> None:
        shadow, answered = Shadow(candidate, 0.25), await answered_by(candidate)
        drawn = count("scored") + count("dropped")
        for _ in range(40):
            shadow.offer(inputs, answered)
        await shadow.close()
        assert count("scored") + count("dropped") == drawn + 10

    asyncio.run(check())


def test_a_candidate_that_fails_is_counted_and_nothing_else(candidate: Loaded) -> None:
    def broken(view: ModelView) -> tuple[UserInputs, np.ndarray]:
        raise ValueError(f"no column of {len(view.columns('candidate'))}")

    async def check() -> None:
        shadow, failed = Shadow(candidate, 1.0), count("failed")
        shadow.offer(broken, await answered_by(candidate))
        await shadow.close()
        assert count("failed") == failed + 1

    asyncio.run(check())
