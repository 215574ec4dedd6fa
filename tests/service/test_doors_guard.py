"""Which connection is closed when: exact, on a clock of the test."""

from __future__ import annotations

import resource

import pytest

from service.doors.guard import Guard, Waiting
from service.doors.limits import Limits, affordable_connections

LIMITS = Limits(idle_s=60.0, head_s=5.0, body_s=10.0, answer_s=30.0, leave_s=1.0, patience_s=0.25)


class Waiter:
    def __init__(self, among: Waiting, since: float) -> None:
        self.among, self.ended = among, ""
        among.since[self] = since

    def expire(self) -> None:
        self._end("expired")

    def give_way(self) -> None:
        self._end("gave way")

    def _end(self, how: str) -> None:
        self.ended = how
        del self.among.since[self]


@pytest.fixture
def guard() -> Guard:
    return Guard(LIMITS)


@pytest.mark.parametrize(
    ("name", "limit_s"),
    [("new", 60.0), ("idle", 60.0), ("heads", 5.0), ("bodies", 10.0), ("answers", 30.0), ("leaving", 1.0)],
)
def test_each_has_its_time(guard: Guard, name: str, limit_s: float) -> None:
    waiting: Waiting = getattr(guard, name)
    first, second = Waiter(waiting, 100.0), Waiter(waiting, 100.25)
    guard.sweep(100.0 + limit_s - 0.01, 0.0)
    assert (first.ended, second.ended) == ("", "")
    guard.sweep(100.0 + limit_s, 0.0)
    assert (first.ended, second.ended) == ("expired", "")
    guard.sweep(100.25 + limit_s, 0.0)
    assert second.ended == "expired"
    assert not waiting.since


def test_a_late_sweep_waits_for_the_next_but_no_longer(guard: Guard) -> None:
    """What came while the process was busy is read between two sweeps."""
    slow = Waiter(guard.heads, 100.0)
    guard.sweep(106.0, 0.25)
    assert slow.ended == ""
    guard.sweep(106.5, 0.25)
    assert slow.ended == "expired"
    other = Waiter(guard.heads, 100.0)
    guard.sweep(107.0, 0.25)
    assert other.ended == ""
    guard.sweep(107.25, 0.249)
    assert other.ended == "expired"


def test_who_gives_way(guard: Guard) -> None:
    """Stuck heads, then those that never asked, then the longest idle, then stuck bodies and unread answers."""
    order = [
        Waiter(guard.heads, 99.0),
        Waiter(guard.heads, 99.75),
        Waiter(guard.new, 10.0),
        Waiter(guard.idle, 50.0),
        Waiter(guard.idle, 100.0),
        Waiter(guard.bodies, 20.0),
        Waiter(guard.answers, 20.0),
    ]
    fresh = [Waiter(waiting, 99.76) for waiting in (guard.heads, guard.new, guard.bodies, guard.answers)]
    leaving = Waiter(guard.leaving, 1.0)
    for expected in order:
        found = guard.place(100.0)
        assert found is expected
        found.give_way()
    assert guard.place(100.0) is None
    assert not any(waiter.ended for waiter in (*fresh, leaving))


def test_no_more_connections_than_descriptors() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1_000, hard))
    try:
        assert [affordable_connections(asked) for asked in (7, 872, 873, 2_048)] == [7, 872, 872, 872]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
