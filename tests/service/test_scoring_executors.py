"""Batches of a real engine by real threads: everybody gets what is theirs, whatever happens to the others."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import REGISTRY

from feature_store.matrices import UserInputs
from model.artifact.engine import BatchCost, Engine, Piece, Scored
from model.artifact.golden import load_golden
from model.artifact.manifest import GOLDEN
from service.admission.cost import CostModel
from service.scoring.executors import ScorerClosedError, TooLateError
from service.scoring.scorer import LocalScorer, Score

WAIT_S = 30


class Gate(Engine):
    """The engine, held while `open` is not set.  It remembers its batches: candidates of each piece, users computed."""

    open: threading.Event
    entered: threading.Semaphore
    batches: list[tuple[list[int], int]]
    before: Callable[[Sequence[Piece]], object]

    @classmethod
    def of(cls, artifact: Path) -> Gate:
        gate = cls.load(artifact, check=False)
        assert isinstance(gate, Gate)
        gate.open, gate.entered, gate.batches = threading.Event(), threading.Semaphore(0), []
        gate.before = lambda pieces: None
        gate.open.set()
        return gate

    def run(self, pieces: Sequence[Piece]) -> tuple[list[Scored], BatchCost]:
        self.entered.release()
        assert self.open.wait(WAIT_S)
        self.before(pieces)
        scored, cost = super().run(pieces)
        self.batches.append(([len(piece.candidates) for piece in pieces], cost.users))
        return scored, cost


@pytest.fixture
def gate(artifact: Path) -> Gate:
    return Gate.of(artifact)


@pytest.fixture(scope="module")
def users(artifact: Path) -> list[UserInputs]:
    """Users of the golden cases, one by one, all different."""
    return [
        UserInputs(**{name: values[row : row + 1] for name, values in case.users.feeds().items()})
        for case in load_golden(artifact / GOLDEN)
        for row in range(len(case.users.now))
    ]


@pytest.fixture(scope="module")
def candidates(artifact: Path) -> np.ndarray:
    """[2000, Fc]"""
    cases = load_golden(artifact / GOLDEN)
    known = np.concatenate([case.candidates.reshape(-1, case.candidates.shape[-1]) for case in cases])
    return known[np.random.default_rng(0).integers(0, len(known), 2000)]


@asynccontextmanager
async def scorer_of(engine: Engine, executors: int = 1, states: int = 0) -> AsyncIterator[LocalScorer]:
    scorer = LocalScorer(engine, executors, tile=32, batch_tiles=64, cache_bytes=states * engine.state_bytes)
    try:
        yield scorer
    finally:
        await scorer.close()


@asynccontextmanager
async def held(gate: Gate, scorer: LocalScorer, users: UserInputs, matrix: np.ndarray) -> AsyncIterator[None]:
    """The only executor is at work on one request, so that what is asked inside waits; then it goes on."""
    gate.open.clear()
    while gate.entered.acquire(blocking=False):
        pass
    running = asyncio.create_task(scorer.score(users, matrix))
    await asyncio.sleep(0)
    assert await asyncio.to_thread(gate.entered.acquire, timeout=WAIT_S)
    yield
    gate.batches.clear()
    gate.open.set()
    await running


def close_to(score: Score, engine: Engine, users: UserInputs, matrix: np.ndarray) -> bool:
    expected = engine.calibration.apply(engine.score_user(engine.user_state(users), matrix))
    return score.probabilities.shape == expected.shape and bool(np.abs(score.probabilities - expected).max() < 1e-6)


@pytest.mark.parametrize(("executors", "states"), [(0, 0), (0, 5), (1, 0), (2, 0), (3, 5)])
def test_everybody_gets_what_is_theirs(
    gate: Gate, users: list[UserInputs], candidates: np.ndarray, executors: int, states: int
) -> None:
    sizes = [1, 2, 31, 32, 33, 50, 200, 500, 1024, 1025, 2000]
    asked = [(users[n % len(users)], candidates[n : n + sizes[n % len(sizes)]]) for n in range(60)]

    async def check() -> None:
        async with scorer_of(gate, executors, states) as scorer:
            scores = await asyncio.gather(*(scorer.score(*one) for one in asked))
        for score, (one, matrix) in zip(scores, asked, strict=True):
            assert close_to(score, gate, one, matrix)
            assert min(score.queue_s, score.user_tower_s, score.candidate_tower_s) >= 0
        assert max(len(counts) for counts, _ in gate.batches) > 1

    asyncio.run(check())


def test_what_waits_is_one_batch(gate: Gate, users: list[UserInputs], candidates: np.ndarray) -> None:
    async def check() -> None:
        async with scorer_of(gate) as scorer:
            async with held(gate, scorer, users[0], candidates[:1]):
                asked = [asyncio.create_task(scorer.score(one, candidates[:40])) for one in users[:5]]
                await asyncio.sleep(0)
            await asyncio.gather(*asked)
        assert gate.batches[1:] == [([40] * 5, 5)]

    asyncio.run(check())


def test_the_user_tower_runs_once_for_requests_of_one_user(
    gate: Gate, users: list[UserInputs], candidates: np.ndarray
) -> None:
    async def check() -> None:
        async with scorer_of(gate, states=20) as scorer:
            async with held(gate, scorer, users[0], candidates[:1]):
                asked = [(users[n % 3], candidates[n : n + 20 + n]) for n in range(9)]  # users[0] is being computed
                tasks = [asyncio.create_task(scorer.score(*one)) for one in asked]
                await asyncio.sleep(0)
            scores = await asyncio.gather(*tasks)
        assert all(close_to(score, gate, *one) for score, one in zip(scores, asked, strict=True))
        assert [score.kept for score in scores] == [True, False, False] * 3
        assert [computed for _, computed in gate.batches] == [1, 2]

    asyncio.run(check())


def test_a_large_request_runs_on_all_executors(gate: Gate, users: list[UserInputs], candidates: np.ndarray) -> None:
    both = threading.Barrier(2, timeout=WAIT_S)
    gate.before = lambda pieces: both.wait() if len(pieces[0].candidates) > 32 else None

    async def check() -> None:
        async with scorer_of(gate, executors=2) as scorer:
            await asyncio.sleep(0.1)  # both are idle
            score = await scorer.score(users[0], candidates)
        assert close_to(score, gate, users[0], candidates)
        assert gate.batches[0] == ([32], 1)
        assert sorted(gate.batches[1:]) == [([976], 0), ([992], 0)]

    asyncio.run(check())


def test_only_the_guilty_request_fails(gate: Gate, users: list[UserInputs], candidates: np.ndarray) -> None:
    failures = [("halved", 3), ("refused", 1)]  # of 8, 4, 2; of 1

    async def check() -> None:
        before = [_failures(result) for result, _ in failures]
        async with scorer_of(gate, states=20) as scorer:
            async with held(gate, scorer, users[0], candidates[:1]):
                matrices = [candidates[n : n + 30] for n in range(8)]
                matrices[5] = matrices[5][:, :-1]  # a column is missing
                tasks = [asyncio.create_task(scorer.score(users[n], matrices[n])) for n in range(8)]
                await asyncio.sleep(0)
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [n for n, outcome in enumerate(outcomes) if isinstance(outcome, Exception)] == [5]
        good = [n for n in range(8) if n != 5]
        assert all(close_to(outcomes[n], gate, users[n], matrices[n]) for n in good)
        now = [_failures(result) for result, _ in failures]
        assert [b - a for a, b in zip(before, now, strict=True)] == [count for _, count in failures]

    asyncio.run(check())


def test_a_split_request_that_fails_is_over(gate: Gate, users: list[UserInputs], candidates: np.ndarray) -> None:
    def fail(pieces: Sequence[Piece]) -> None:
        if pieces[0].state is not None:
            raise ValueError("a later piece")

    gate.before = fail

    async def check() -> None:
        async with scorer_of(gate) as scorer:
            with pytest.raises(ValueError, match="a later piece"):
                await scorer.score(users[0], candidates)
            assert close_to(await scorer.score(users[1], candidates[:9]), gate, users[1], candidates[:9])
        assert [counts for counts, _ in gate.batches] == [[1920], [9]]

    asyncio.run(check())


def test_a_request_that_nobody_waits_for_is_not_run(
    gate: Gate, users: list[UserInputs], candidates: np.ndarray
) -> None:
    async def check() -> None:
        async with scorer_of(gate) as scorer:
            async with held(gate, scorer, users[0], candidates):
                gone = asyncio.create_task(scorer.score(users[1], candidates[:40]))
                stays = asyncio.create_task(scorer.score(users[2], candidates[:50]))
                await asyncio.sleep(0)
                gone.cancel()
                await asyncio.sleep(0)
            await stays
            assert gone.cancelled()
        assert [40] not in [counts for counts, _ in gate.batches]
        assert any(50 in counts for counts, _ in gate.batches)

    asyncio.run(check())


def test_close_leaves_nobody_waiting(gate: Gate, users: list[UserInputs], candidates: np.ndarray) -> None:
    async def check() -> None:
        scorer = LocalScorer(gate)
        gate.open.clear()
        running = asyncio.create_task(scorer.score(users[0], candidates[:60]))
        await asyncio.to_thread(gate.entered.acquire, timeout=WAIT_S)
        waiting = [asyncio.create_task(scorer.score(one, candidates)) for one in users[1:4]]
        await asyncio.sleep(0)
        closing = asyncio.create_task(scorer.close())
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [ScorerClosedError] * 3
        assert not closing.done()
        gate.open.set()
        await closing
        assert close_to(await running, gate, users[0], candidates[:60])
        with pytest.raises(ScorerClosedError):
            await scorer.score(users[0], candidates)
        await scorer.close()

    threads = threading.active_count()
    asyncio.run(check())
    assert threading.active_count() == threads


def test_requests_of_several_event_loops(gate: Gate, users: list[UserInputs], candidates: np.ndarray) -> None:
    scorer = LocalScorer(gate, executors=2)
    right: list[bool] = []

    async def ask(user: int) -> None:
        for size in (1, 40, 2000, 300):
            right.append(
                close_to(await scorer.score(users[user], candidates[:size]), gate, users[user], candidates[:size])
            )

    threads = [threading.Thread(target=lambda user=user: asyncio.run(ask(user))) for user in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asyncio.run(scorer.close())
    assert right == [True] * 16


def test_an_event_loop_that_ended_holds_up_nobody(gate: Gate, users: list[UserInputs], candidates: np.ndarray) -> None:
    scorer = LocalScorer(gate)
    gate.open.clear()

    async def leave() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(scorer.score(users[0], candidates[:10]), 0.05)

    async def stay() -> bool:
        return close_to(await scorer.score(users[1], candidates[:20]), gate, users[1], candidates[:20])

    asyncio.run(leave())
    gate.open.set()
    assert asyncio.run(stay())
    asyncio.run(scorer.close())


def test_a_batch_wakes_its_event_loop_once(gate: Gate, users: list[UserInputs], candidates: np.ndarray) -> None:
    class Loop(asyncio.SelectorEventLoop):
        wakes = 0

        def call_soon_threadsafe(self, *arguments: object, **more: object) -> asyncio.Handle:
            Loop.wakes += threading.current_thread().name.startswith("engine-")
            return super().call_soon_threadsafe(*arguments, **more)

    async def check() -> None:
        async with scorer_of(gate) as scorer:
            async with held(gate, scorer, users[0], candidates[:1]):
                tasks = [asyncio.create_task(scorer.score(one, candidates[:40])) for one in users[:6]]
                await asyncio.sleep(0)
            await asyncio.gather(*tasks)

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(check())
    assert len(gate.batches) == Loop.wakes == 2


def test_warm_up_runs_the_shapes_of_traffic_and_keeps_nobody(
    gate: Gate, users: list[UserInputs], candidates: np.ndarray
) -> None:
    async def check() -> None:
        async with scorer_of(gate, executors=2, states=50) as scorer:
            await scorer.warm_up()
            sizes = {count for counts, _ in gate.batches for count in counts}
            assert {1, 50, 200, 500} <= sizes
            assert any(len(counts) > 1 for counts, _ in gate.batches)
            assert REGISTRY.get_sample_value("farm_state_cache_bytes") == 0

    asyncio.run(check())


def test_no_candidates_are_refused(gate: Gate, users: list[UserInputs], candidates: np.ndarray) -> None:
    async def check() -> None:
        async with scorer_of(gate) as scorer:
            with pytest.raises(ValueError, match="candidates: at least one"):
                await scorer.score(users[0], candidates[:0])

    asyncio.run(check())


def _failures(result: str) -> float:
    value = REGISTRY.get_sample_value("farm_batch_failures_total", {"result": result})
    assert value is not None
    return value


def test_without_threads_the_event_loop_runs_what_came_together(
    gate: Gate, users: list[UserInputs], candidates: np.ndarray
) -> None:
    async def check() -> None:
        async with scorer_of(gate, executors=0) as scorer:
            gate.batches.clear()
            asked = [scorer.score(users[n], candidates[:40]) for n in range(5)]
            left = asyncio.create_task(scorer.score(users[5], candidates[:40]))
            await asyncio.sleep(0)
            left.cancel()
            scores = await asyncio.gather(*asked)
            assert all(close_to(score, gate, users[n], candidates[:40]) for n, score in enumerate(scores))
            assert [sizes for sizes, _ in gate.batches] == [[40] * 5]

    asyncio.run(check())


@pytest.mark.parametrize("executors", [0, 1])
def test_who_would_be_late_is_not_run(
    gate: Gate, users: list[UserInputs], candidates: np.ndarray, executors: int
) -> None:
    async def check() -> None:
        async with scorer_of(gate, executors) as scorer:
            await scorer.warm_up()
            assert scorer.costs.tile_s != CostModel().tile_s  # learned
            gate.batches.clear()
            now = time.monotonic()
            asked = [
                scorer.score(users[n], candidates[: 40 + n], now + (WAIT_S if n % 2 else -1), n == 3) for n in range(4)
            ]
            outcomes = await asyncio.gather(*asked, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [TooLateError, Score, TooLateError, Score]
            assert sorted(size for sizes, _ in gate.batches for size in sizes) == [41, 43]

    asyncio.run(check())
