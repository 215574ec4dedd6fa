"""Limits of time in a real loop; what is exact of them is told by which answers still come."""

from __future__ import annotations

import asyncio
import math
import time

import pytest

from feature_store.reading.alarm import Alarms, TimeIsUp

FOREVER_S = 30.0


def test_what_comes_in_time_passes() -> None:
    async def scenario() -> None:
        alarms = Alarms(0.05)
        for at_most_s in (math.inf, 0.06):
            with alarms.within(at_most_s):
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.1)  # nothing rings later
        with alarms.within(math.inf):
            pass

    asyncio.run(scenario())


@pytest.mark.parametrize(("at_most_s", "least_s", "most_s"), [(math.inf, 0.1, 0.6), (0.02, 0.02, 0.09)])
def test_what_does_not_come_is_cancelled(at_most_s: float, least_s: float, most_s: float) -> None:
    async def scenario() -> float:
        alarms, began = Alarms(0.1), time.monotonic()
        with pytest.raises(TimeIsUp), alarms.within(at_most_s):
            await asyncio.sleep(FOREVER_S)
        took = time.monotonic() - began
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0)
        return took

    assert least_s <= asyncio.run(scenario()) < most_s


def test_an_answer_that_lies_in_the_socket_is_taken_though_the_loop_came_late() -> None:
    """asyncio.timeout would end it; the limit passes while the loop is held, and so does the answer's arrival."""

    async def answer(server: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        client.write(await server.readexactly(1))

    async def scenario(at_most_s: float) -> bytes:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        loop = asyncio.get_running_loop()
        with Alarms(0.02).within(at_most_s):
            writer.write(b"x")
            loop.call_soon(time.sleep, 0.05)
            got = await reader.readexactly(1)
        writer.close()
        server.close()
        return got

    for at_most_s in (math.inf, 0.02):
        assert asyncio.run(scenario(at_most_s)) == b"x"


def test_a_cancellation_by_someone_else_passes_through() -> None:
    async def block(alarms: Alarms, at_most_s: float) -> None:
        with alarms.within(at_most_s):
            await asyncio.sleep(FOREVER_S)

    async def scenario() -> None:
        alarms = Alarms(1.0)
        for at_most_s in (math.inf, 0.5):
            task = asyncio.ensure_future(block(alarms, at_most_s))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(scenario())


def test_what_swallows_a_cancellation_is_cancelled_again() -> None:
    async def stubborn() -> None:
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(FOREVER_S)
        await asyncio.sleep(FOREVER_S)

    async def scenario() -> None:
        with pytest.raises(TimeIsUp), Alarms(0.02).within(math.inf):
            await stubborn()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    asyncio.run(scenario())


def test_an_error_within_is_itself() -> None:
    async def scenario() -> None:
        with pytest.raises(KeyError), Alarms(0.02).within(math.inf):
            raise KeyError

    asyncio.run(scenario())


def test_one_ticks_for_all_and_in_one_loop_after_another() -> None:
    alarms = Alarms(0.02)

    async def late() -> bool:
        try:
            with alarms.within(math.inf):
                await asyncio.sleep(FOREVER_S)
        except TimeIsUp:
            return True
        return False

    async def scenario() -> list[bool]:
        return await asyncio.gather(*(late() for _ in range(50)))

    for _ in range(2):
        assert asyncio.run(scenario()) == [True] * 50
