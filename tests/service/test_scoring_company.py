"""Batches of an event loop: for whom they wait, and for whom they do not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest

from service.scoring import executors
from service.scoring.executors import Executors
from service.scoring.policy import BatchPolicy, Job

TURNS = 20  # of the loop: more than a batch waits for what can be read at once
WAIT_S = 5.0


class World:
    """Executors without threads, and how many jobs each of their batches had."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        policy = BatchPolicy[Job](tile=32, batch_tiles=64, user_tiles=0)
        self.executors = Executors[Job](policy, 0, self._run, lambda late: None, lambda: 0.0)

    def _run(self, shares: Any) -> None:
        self.batches.append(len(shares))
        self.executors.finish(shares)

    async def job(self, reading: asyncio.Future[None]) -> None:
        """Read, then add."""
        with self.executors.coming():
            await reading
        self.executors.add(Job(10))


def run(scenario: Callable[[World], Coroutine[Any, Any, None]]) -> list[int]:
    world = World()
    asyncio.run(asyncio.wait_for(scenario(world), WAIT_S))
    return world.batches


async def turns(count: int = TURNS) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def futures(count: int) -> list[asyncio.Future[None]]:
    return [asyncio.get_running_loop().create_future() for _ in range(count)]


def test_a_job_alone_is_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        (reading,) = futures(1)
        reading.set_result(None)
        await world.job(reading)
        await turns()

    monkeypatch.setattr(executors, "_COMPANY_S", 3600.0)
    assert run(scenario) == [1]


def test_those_that_are_read_share_a_batch_however_many_turns_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        readings = futures(3)
        jobs = [asyncio.create_task(world.job(reading)) for reading in readings]
        for reading in readings:
            await turns()
            assert world.batches == []
            reading.set_result(None)
        await asyncio.gather(*jobs)
        await turns()

    monkeypatch.setattr(executors, "_COMPANY_S", 3600.0)
    assert run(scenario) == [3]


@pytest.mark.parametrize("end", ["fails", "is cancelled"])
def test_a_reading_that_ends_otherwise_holds_up_nobody(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    async def scenario(world: World) -> None:
        first, second = futures(2)
        other = asyncio.create_task(world.job(second))
        first.set_result(None)
        await turns()
        await world.job(first)
        await turns()
        assert world.batches == []
        if end == "fails":
            second.set_exception(OSError("no store"))
        else:
            other.cancel()
        with suppress(OSError, asyncio.CancelledError):
            await other
        await turns()

    monkeypatch.setattr(executors, "_COMPANY_S", 3600.0)
    assert run(scenario) == [1]


def test_a_reading_that_hangs_is_waited_for_a_moment_by_each_batch() -> None:
    async def scenario(world: World) -> None:
        hanging, *readings = futures(3)
        other = asyncio.create_task(world.job(hanging))
        for number, reading in enumerate(readings, 1):
            await turns()
            reading.set_result(None)
            await world.job(reading)
            await turns()
            assert len(world.batches) == number - 1  # it waits
            while len(world.batches) < number:
                await asyncio.sleep(0.001)
        hanging.set_result(None)
        await other
        await turns()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executors, "_COMPANY_S", 0.05)
        assert run(scenario) == [1, 1, 1]


def test_the_wait_is_bounded_though_others_keep_coming() -> None:
    async def scenario(world: World) -> None:
        loop, jobs = asyncio.get_running_loop(), []
        begun = loop.time()
        while not world.batches:
            assert loop.time() - begun < WAIT_S / 2
            ended, begins = futures(2)
            jobs += [asyncio.create_task(world.job(reading)) for reading in (ended, begins)]
            await turns(2)
            ended.set_result(None)
            loop.call_later(0.02, begins.set_result, None)
            await asyncio.sleep(0.005)
        await asyncio.gather(*jobs)

    assert run(scenario)[0] >= 1
