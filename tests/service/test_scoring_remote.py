"""A scorer behind a unix socket answers as the one in the process does, whatever becomes of the other side."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from feature_store.matrices import UserInputs
from model.artifact.engine import Engine
from model.artifact.golden import GoldenCase, load_golden
from model.artifact.manifest import GOLDEN
from service.scoring import remote as remote_module
from service.scoring.executors import ScorerClosedError, TooLateError
from service.scoring.process import Hello, ScorerServer, _Connection
from service.scoring.remote import EngineLostError, RemoteScorer
from service.scoring.scorer import LocalScorer, NotProbabilitiesError, Score
from service.scoring.wire import CANCEL, SCORE, Frames, Layout, frame


@pytest.fixture(scope="module")
def engine(artifact: Path) -> Engine:
    return Engine.load(artifact, check=False)


@pytest.fixture(scope="module")
def cases(artifact: Path) -> list[GoldenCase]:
    return load_golden(artifact / GOLDEN)


def one_user(case: GoldenCase, row: int) -> UserInputs:
    return UserInputs(**{name: values[row : row + 1] for name, values in case.users.feeds().items()})


@asynccontextmanager
async def engine_process(engine: Engine, path: Path, version: str | None = None) -> AsyncIterator[LocalScorer]:
    """Its parts, in this process."""
    scorer = LocalScorer(engine)
    server = ScorerServer(scorer, Layout(engine.view), Hello(version or engine.version, engine.provider))
    await server.start(path)
    try:
        yield scorer
    finally:
        await server.close()
        await scorer.close()


@asynccontextmanager
async def asking(engine: Engine, *paths: Path) -> AsyncIterator[RemoteScorer]:
    remote = RemoteScorer(paths, Layout(engine.view), engine.version)
    try:
        yield remote
    finally:
        await remote.close()


def test_frames_are_cut_wherever_the_stream_is_split() -> None:
    stream = frame(SCORE, 7, b"abc") + frame(SCORE, 2**31, b"") + frame(SCORE, 9, bytes(range(256)))
    for size in (1, 2, 15, 16, 17, 1000):
        frames = Frames()
        cut = [found for start in range(0, len(stream), size) for found in frames.feed(stream[start : start + size])]
        assert cut == [(SCORE, 7, b"abc"), (SCORE, 2**31, b""), (SCORE, 9, bytes(range(256)))]


def test_requests_and_answers_survive_the_wire(engine: Engine, cases: list[GoldenCase]) -> None:
    layout, users, candidates = Layout(engine.view), one_user(cases[0], 1), cases[0].candidates[0]
    read, rows, left_s, low = layout.parse_request(layout.request(users, candidates, 0.25, True))
    assert (left_s, low) == (0.25, True)
    for name, values in users.feeds().items():
        np.testing.assert_array_equal(read.feeds()[name], values)
    np.testing.assert_array_equal(rows, candidates)
    score = Score(cases[0].probabilities[0], 0.25, 0.5, 1.5, True)
    again = layout.parse_answer(layout.answer(score))
    np.testing.assert_array_equal(again.probabilities, score.probabilities)
    assert (again.queue_s, again.user_tower_s, again.candidate_tower_s, again.kept) == (0.25, 0.5, 1.5, True)


def test_many_requests_at_once_get_what_the_engine_gives(
    engine: Engine, cases: list[GoldenCase], tmp_path: Path
) -> None:
    async def run() -> list[Score]:
        case, paths = cases[0], (tmp_path / "a", tmp_path / "b")
        tiles = list(zip(case.tile_user.tolist(), case.candidates, strict=True))
        async with engine_process(engine, paths[0]), engine_process(engine, paths[1]), asking(engine, *paths) as remote:
            await remote.warm_up()
            return await asyncio.gather(*(remote.score(one_user(case, row), tile) for row, tile in tiles))

    scores = asyncio.run(run())
    for score, expected in zip(scores, cases[0].probabilities, strict=True):
        np.testing.assert_allclose(score.probabilities, engine.calibration.apply(expected), atol=1e-5)


def test_an_engine_that_ends_fails_what_it_had_and_one_that_returns_answers(
    engine: Engine, cases: list[GoldenCase], tmp_path: Path
) -> None:
    users, rows, path = one_user(cases[0], 2), cases[0].candidates[0], tmp_path / "engine"

    async def run() -> None:
        async with asking(engine, path) as remote:
            with pytest.raises(EngineLostError, match="does not answer"):
                await remote.score(users, rows)
            async with engine_process(engine, path) as scorer:
                first = await remote.score(users, rows)
                await scorer.close()
                with pytest.raises(ScorerClosedError, match="clos"):
                    await remote.score(users, rows)
            path.unlink(missing_ok=True)
            remote._peers[0]._link._transport.abort()  # what the end of the process does to its connections
            async with engine_process(engine, path):
                await asyncio.sleep(0.05)
                again = await remote.score(users, rows)
            np.testing.assert_array_equal(again.probabilities, first.probabilities)

    asyncio.run(run())


def test_another_model_is_not_asked(engine: Engine, cases: list[GoldenCase], tmp_path: Path) -> None:
    async def run() -> None:
        path = tmp_path / "engine"
        async with engine_process(engine, path, version="another"), asking(engine, path) as remote:
            with pytest.raises(EngineLostError, match="has model another"):
                await remote.score(one_user(cases[0], 0), cases[0].candidates[0])

    asyncio.run(run())


def test_wrong_inputs_fail_alone(engine: Engine, cases: list[GoldenCase], tmp_path: Path) -> None:
    users, rows = one_user(cases[0], 2), cases[0].candidates[0]

    async def run() -> list[Score | BaseException]:
        async with engine_process(engine, tmp_path / "engine"), asking(engine, tmp_path / "engine") as remote:
            asked = [remote.score(users, rows[:0]), remote.score(users, rows)]
            return await asyncio.gather(*asked, return_exceptions=True)

    wrong, right = asyncio.run(run())
    assert isinstance(wrong, RuntimeError)
    assert "at least one" in str(wrong)
    assert isinstance(right, Score)
    assert len(right.probabilities) == len(rows)


def test_a_request_that_nobody_waits_for_is_dropped(engine: Engine, cases: list[GoldenCase], tmp_path: Path) -> None:
    users, rows = one_user(cases[0], 2), cases[0].candidates[0]

    async def run() -> Score:
        async with engine_process(engine, tmp_path / "engine"), asking(engine, tmp_path / "engine") as remote:
            left = asyncio.create_task(remote.score(users, rows))
            await asyncio.sleep(0)
            left.cancel()
            with pytest.raises(asyncio.CancelledError):
                await left
            return await remote.score(users, rows)

    assert len(asyncio.run(run()).probabilities) == len(rows)


def test_what_is_no_probability_is_known_as_such_on_the_other_side(
    engine: Engine, cases: list[GoldenCase], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By that a model is rolled back."""

    async def run() -> None:
        async with engine_process(engine, tmp_path / "engine") as scorer, asking(engine, tmp_path / "engine") as remote:
            monkeypatch.setattr(scorer, "_calibrated", spoilt)
            with pytest.raises(NotProbabilitiesError, match="not all outputs"):
                await remote.score(one_user(cases[0], 0), cases[0].candidates[0])

    def spoilt(scored: object) -> None:
        raise NotProbabilitiesError("not all outputs are between 0 and 1")

    asyncio.run(run())


class Mute(asyncio.Protocol):
    """An engine process that says who it is, or not even that, and no more."""

    def __init__(self, says: bytes) -> None:
        self._says, self.lost = says, asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.WriteTransport, transport).write(self._says)

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.set()


@pytest.mark.parametrize("greets", [True, False])
def test_nobody_waits_for_an_engine_process_that_hangs(
    engine: Engine, cases: list[GoldenCase], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, greets: bool
) -> None:
    hello = frame(0, 0, Hello(engine.version, "cpu").to_bytes()) if greets else b""
    monkeypatch.setattr(remote_module, "_GRACE_S", 0.05)
    monkeypatch.setattr(remote_module, "_CONNECT_S", 0.05)

    async def run() -> None:
        links: list[Mute] = []

        def accept() -> Mute:
            links.append(Mute(hello))
            return links[-1]

        path = tmp_path / "engine"
        async with (
            await asyncio.get_running_loop().create_unix_server(accept, str(path)),
            asking(engine, path) as other,
        ):
            with pytest.raises(TooLateError if greets else EngineLostError):
                await other.score(one_user(cases[0], 0), cases[0].candidates[0], time.monotonic() + 0.1)
            if not greets:
                await asyncio.wait_for(links[0].lost.wait(), 5)

    asyncio.run(run())


def test_what_is_cancelled_before_it_begins_leaves_nothing(engine: Engine, cases: list[GoldenCase]) -> None:
    async def run() -> None:
        layout = Layout(engine.view)
        connection = _Connection(cast(Any, None), layout, Hello(engine.version, "cpu"))
        body = layout.request(one_user(cases[0], 0), cases[0].candidates[0], math.inf)
        connection.data_received(frame(SCORE, 1, body) + frame(CANCEL, 1))
        assert len(connection._tasks) == 1
        await asyncio.sleep(0.01)
        assert connection._tasks == {}

    asyncio.run(run())
