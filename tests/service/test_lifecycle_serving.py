"""What answers a request: counted while it is under way, chosen by user while users are split."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from service.errors import EngineUnavailableError, ServiceError
from service.lifecycle.serving import CONTROL, SPLIT, Serving, ServingSet, Split, Uses
from service.runtime import Runtime, load_runtime
from service.scoring.scorer import NotProbabilitiesError
from service.settings import Settings


@pytest.fixture(scope="module")
def runtime(artifact: Path, store_url: str) -> Iterator[Runtime]:
    loaded = load_runtime(Settings(artifact=artifact, store=store_url))
    yield loaded
    asyncio.run(loaded.close())  # else nobody else in this process can open the store


@pytest.fixture
def serving(runtime: Runtime) -> Serving:
    return Serving(runtime.model, runtime.scorer, runtime.formula, CONTROL)


@pytest.fixture
def other(runtime: Runtime) -> Serving:
    return Serving(runtime.model, runtime.scorer, runtime.formula, SPLIT)


def outcome(uses: Uses, error: BaseException | None) -> None:
    """Of one request."""
    with suppress(BaseException), uses:
        if error is not None:
            raise error


def test_outcomes_are_counted_by_whose_fault_they_are(serving: Serving) -> None:
    uses = serving.use()
    spoilt = ServiceError("hidden")
    spoilt.__cause__ = NotProbabilitiesError("NaN")
    mine = [RuntimeError("the engine failed"), ServiceError("the service failed"), NotProbabilitiesError("NaN"), spoilt]
    for error in (None, EngineUnavailableError("stopping"), asyncio.CancelledError(), *mine):
        outcome(uses, error)
    assert (uses.count, uses.requests, uses.faults, uses.spoilt) == (0, 7, 4, 2)


def test_what_was_replaced_is_left_when_its_last_request_has_ended(serving: Serving, other: Serving) -> None:
    async def check() -> None:
        answering = ServingSet(serving)
        first, second = serving.use(), serving.use()
        first.__enter__()
        second.__enter__()
        assert answering.switch(other) == [serving]
        assert answering.current() is other
        left = asyncio.create_task(serving.uses.none_left())
        for uses in (first, second):
            await asyncio.sleep(0)
            assert not left.done()
            uses.__exit__(None, None, None)
        await asyncio.wait_for(left, 5)
        await other.uses.none_left()  # on which there was none

    asyncio.run(check())


def test_a_switch_to_what_serves_replaces_nothing(serving: Serving, other: Serving) -> None:
    answering = ServingSet(serving)
    assert answering.switch(serving, Split(other, 0.5, "a")) == []
    assert answering.all() == [serving, other]
    assert answering.switch(other) == [serving]


def test_users_are_split_by_share_and_always_the_same(serving: Serving, other: Serving) -> None:
    users = range(-10_000, 10_000)
    first, again = (ServingSet(serving, Split(other, 0.25, "first")) for _ in range(2))
    chosen = [first.choose(user) for user in users]
    assert chosen == [again.choose(user) for user in users]
    assert 0.235 < chosen.count(other) / len(users) < 0.265  # more than 4 standard errors
    assert {first.choose(2**63 - 1), first.choose(-(2**63))} <= {serving, other}


def test_another_salt_draws_other_users(serving: Serving, other: Serving) -> None:
    """Half of those that the first draws: what remains of an experiment is in both arms of the next."""
    first, second = Split(other, 0.5, "first"), Split(other, 0.5, "second")
    drawn = [user for user in range(20_000) if first.has(user)]
    assert 0.48 < sum(second.has(user) for user in drawn) / len(drawn) < 0.52


def test_a_share_of_all_or_none(serving: Serving, other: Serving) -> None:
    assert all(Split(other, 1.0, "x").has(user) for user in range(1000))
    assert not any(Split(other, 0.0, "x").has(user) for user in range(1000))
