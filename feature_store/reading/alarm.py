"""Limits of time for what tasks await, fair to a loop that is busy with other things, and cheap when nothing is late.

asyncio.timeout ends a wait although its answer lies in the socket, when the loop came late to both.  Here one timer
ticks for all who wait: whatever held the loop counts for at most one tick, and after the last one the loop goes round
a few times more.
"""

from __future__ import annotations

import asyncio
from types import TracebackType

_TICKS = 4  # of a limit
_ROUNDS = 4  # of the loop, from an answer that lies in the socket to the task that awaits it
_AGAIN_S = 0.005  # wait_for of Python 3.11 swallows a cancellation that comes as its work is done
_EXACT = 1.5  # a limit of one's own is kept exactly when it is less than so many times that of all


class TimeIsUp(Exception):  # noqa: N818 - it is what was found
    """What was awaited did not come in time; it was cancelled."""


class Alarms:
    """Blocks of at most `seconds` each, up to a quarter more, and as much as the loop was late.

    Example::

        with alarms.within(at_most_s):
            answer = await question  # or TimeIsUp
    """

    def __init__(self, seconds: float) -> None:
        self._exact_s, self._tick_s = _EXACT * seconds, seconds / _TICKS
        self._waiting: dict[_Alarm, int] = {}  # and in which tick each began
        self._tick = 0
        self._loop: asyncio.AbstractEventLoop | None = None  # that ticks; None when nobody waits

    def within(self, at_most_s: float) -> _Alarm:
        """A block, to be entered at once by the running task.  at_most_s: a limit of its own, may be infinite.

        A cancellation by someone else passes through.  The block must not go on when it is cancelled.
        """
        return _Alarm(self, at_most_s if at_most_s < self._exact_s else None)

    def begin(self, alarm: _Alarm, loop: asyncio.AbstractEventLoop) -> None:
        self._waiting[alarm] = self._tick
        if self._loop is not loop:
            self._loop = loop
            loop.call_later(self._tick_s, self._next)

    def end(self, alarm: _Alarm) -> None:
        del self._waiting[alarm]

    def _next(self) -> None:
        self._tick += 1
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # another one has taken over
            return
        for alarm, began in self._waiting.items():
            if self._tick - began == _TICKS + 1:
                alarm.go_round()
        if self._waiting:
            loop.call_later(self._tick_s, self._next)
        else:
            self._loop = None


class _Alarm:
    """Of one block."""

    __slots__ = ("_alarms", "_at_most_s", "_cancelled", "_handle", "_loop", "_rung", "_task")

    def __init__(self, alarms: Alarms, at_most_s: float | None) -> None:
        self._alarms, self._at_most_s = alarms, at_most_s
        self._rung = 0
        self._handle: asyncio.Handle | None = None

    def __enter__(self) -> None:
        self._loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None, "a coroutine runs in a task"
        self._task, self._cancelled = task, task.cancelling()
        if self._at_most_s is None:
            self._alarms.begin(self, self._loop)
        else:
            self._handle = self._loop.call_later(self._at_most_s, self.go_round)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._at_most_s is None:
            self._alarms.end(self)
        if self._handle is not None:
            self._handle.cancel()
        if not self._rung:
            return
        for _ in range(self._rung):
            left = self._task.uncancel()
        if left <= self._cancelled and kind is asyncio.CancelledError:
            raise TimeIsUp from error

    def go_round(self, rounds: int = _ROUNDS) -> None:
        """Let the loop go round, then ring."""
        if rounds:
            self._handle = self._loop.call_soon(self.go_round, rounds - 1)
        else:
            self._ring()

    def _ring(self) -> None:
        self._rung += 1
        self._task.cancel()
        self._handle = self._loop.call_later(_AGAIN_S, self._ring)
