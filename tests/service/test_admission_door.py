"""Who enters: exact bounds, on a clock that only the test moves."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from service.admission.admission import Admission, Limits, Priority, Refusal, Ticket
from service.admission.cost import CostModel
from service.admission.metrics import count_dropped, count_refused, show_queue

LATE = 1e9
# a tile takes 1 ms, a user tower 4; a queue of 1 s at most, of 0.1 s in overload
LIMITS = Limits(queue_tiles=10_000, burst_s=1.0, queue_s=0.1, floor_tiles=0, low_share=0.25, user_tiles=4)


def door_of(lanes: int = 1, **changes: float) -> Admission:
    door = Admission(CostModel(lanes), replace(LIMITS, **changes))
    for _ in range(2):
        door.costs.observe_batch(10, 0.01, 10, 0.04, 0.0)
    return door


def enter(door: Admission, tiles: int, now: float = 0.0, priority: Priority = "high", users: int = 0) -> Ticket:
    ticket = door.admit(tiles, users, priority, None, LATE, now)
    assert isinstance(ticket, Ticket)
    return ticket


def refuse(door: Admission, tiles: int, now: float = 0.0, priority: Priority = "high") -> Refusal:
    refusal = door.admit(tiles, 0, priority, None, LATE, now)
    assert isinstance(refusal, Refusal)
    return refusal


def test_what_enters_is_the_queue_until_it_leaves() -> None:
    door = door_of()
    first, second = enter(door, 10, users=1), enter(door, 5, priority="low")
    assert (door.queued("high"), door.queued("low")) == (14, 5)
    assert door.wait_s() == pytest.approx(0.019)
    first.release()
    assert (door.queued("high"), door.queued("low")) == (0, 5)
    second.release()
    assert (door.queued("high"), door.queued("low"), door.wait_s()) == (0, 0, 0.0)
    with pytest.raises(RuntimeError, match="a ticket was released twice"):
        first.release()
    assert door.queued("high") == 0


def test_the_queue_has_a_greatest_cost() -> None:
    door = door_of(queue_tiles=100)
    enter(door, 90)
    assert refuse(door, 11).reason == "queue"
    enter(door, 10)
    assert refuse(door, 1).reason == "queue"


def test_nobody_is_too_large_for_an_empty_queue() -> None:
    door = door_of(queue_tiles=100, queue_s=0.0, burst_s=0.0)
    for now in (0.0, 1.0):
        large = enter(door, 5000, now)
        assert refuse(door, 1, now).reason == "queue"
        large.release()


def test_a_request_enters_behind_a_burst() -> None:
    """What counts is the wait, not its own size: the large are not those that overload shuts out."""
    door = door_of()
    enter(door, 1000)
    enter(door, 100)  # exactly 1 s is ahead of it
    refusal = refuse(door, 1)
    assert refusal == Refusal(
        "queue", pytest.approx(1.1), "the queue has no room for a request of high priority: 1100.0 ms wait"
    )


def test_in_overload_the_queue_is_short() -> None:
    """50 tiles come each 25 ms, twice what can be done."""
    door, waits, entered = door_of(), [], []
    for step in range(200):
        now = 0.025 * step
        while entered and entered[0][0] <= now:
            entered.pop(0)[1].release()
        waits.append(door.wait_s())
        outcome = door.admit(50, 0, "high", None, LATE, now)
        if isinstance(outcome, Ticket):
            done = max(now, entered[-1][0] if entered else 0.0) + 0.05
            entered.append((done, outcome))
    assert max(waits) == pytest.approx(1.05)  # at first it might be a burst
    assert max(waits[100:]) == pytest.approx(0.15)
    assert min(waits[100:]) == pytest.approx(0.1)  # yet the executor has always something to do


@pytest.mark.parametrize(("later_s", "entered"), [(2.9, 2), (3.5, 6), (4.0, 11)])
def test_after_an_overload_bursts_may_come_again(later_s: float, entered: int) -> None:
    """Of 10 s of work that came 4 count, so that after 3 no more than a burst is left."""
    door = door_of()
    outcomes = [door.admit(100, 0, "high", None, LATE, 10.0) for _ in range(100)]
    tickets = [outcome for outcome in outcomes if isinstance(outcome, Ticket)]
    assert tickets == outcomes[:11]  # 0 to 1 s are ahead of them
    for ticket in tickets:
        ticket.release()
    outcomes = [door.admit(100, 0, "high", None, LATE, 10.0 + later_s) for _ in range(100)]
    assert [isinstance(outcome, Ticket) for outcome in outcomes] == [True] * entered + [False] * (100 - entered)


def test_below_the_floor_nobody_is_refused_for_the_wait() -> None:
    door = door_of(floor_tiles=64, queue_s=0.0, burst_s=0.0)
    for _ in range(4):
        enter(door, 20)  # 0, 20, 40, 60 ahead
    assert refuse(door, 1).reason == "queue"


def test_several_executors_shorten_the_wait() -> None:
    door = door_of(lanes=4)
    enter(door, 4000)
    enter(door, 1)
    assert refuse(door, 1).reason == "queue"
    assert door.wait_s() == pytest.approx(4.001 / 4)


def test_low_priority_fills_a_share() -> None:
    door = door_of(queue_tiles=2000)
    enter(door, 1)
    enter(door, 260, priority="low")  # none of its kind is ahead
    assert refuse(door, 1, priority="low").reason == "queue"  # 0.26 s are more than a quarter of 1 s
    door = door_of(queue_tiles=400)
    enter(door, 1)
    enter(door, 100, priority="low")
    assert refuse(door, 1, priority="low").reason == "queue"  # a quarter of 400 tiles
    enter(door, 299)
    assert refuse(door, 1).reason == "queue"


def test_low_priority_is_refused_first() -> None:
    door = door_of()
    enter(door, 1001)
    assert refuse(door, 1, priority="low").reason == "queue"
    door = door_of()
    enter(door, 200, priority="low")
    enter(door, 800)
    enter(door, 100)  # 1 s is in the queue, of which 0.2 s wait for it
    assert refuse(door, 1, priority="low").reason == "queue"


def test_what_cannot_be_done_in_time_is_refused() -> None:
    door = door_of()
    door.costs.observe_batch(1, 0.001, 0, 0.0, 5.0)
    late = door.admit(10, 1, "high", None, 5.013, 5.0)
    assert isinstance(late, Refusal)
    assert (late.reason, late.retry_after_s) == ("deadline", 0.0)
    assert late.detail == "an answer takes about 14.0 ms, 0.0 ms of it in the queue, and 13.0 ms are left"
    assert isinstance(door.admit(10, 1, "high", None, 5.0141, 5.0), Ticket)
    behind = door.admit(10, 1, "high", None, 5.027, 5.0)
    assert isinstance(behind, Refusal)
    assert behind.detail == "an answer takes about 28.0 ms, 14.0 ms of it in the queue, and 27.0 ms are left"
    assert isinstance(door.admit(10, 1, "high", None, 5.0281, 5.0), Ticket)
    passed = door.admit(1, 0, "high", None, 4.0, 5.0)
    assert isinstance(passed, Refusal)
    assert passed.detail.endswith("and 0.0 ms are left")


def test_low_priority_does_not_delay_high() -> None:
    door = door_of()
    door.costs.observe_batch(1, 0.001, 0, 0.0, 0.0)
    enter(door, 50, priority="low")
    assert isinstance(door.admit(10, 0, "high", None, 0.0101, 0.0), Ticket)
    assert isinstance(door.admit(10, 0, "low", None, 0.0699, 0.0), Refusal)
    assert isinstance(door.admit(10, 0, "low", None, 0.0701, 0.0), Ticket)


def test_what_was_slow_once_gets_another_chance() -> None:
    """All are refused, so nothing is learned: the estimate is believed less until one enters."""
    door = door_of()
    door.costs.observe_batch(1, 0.4, 1, 0.4, 10.0)  # the middle of two times 0.001 and once 0.4 is not slow ...
    door.costs.observe_batch(1, 0.4, 1, 0.4, 10.0)
    door.costs.observe_batch(1, 0.4, 1, 0.4, 10.0)  # ... and that of three is
    outcomes = [door.admit(1, 0, "high", None, now + 0.1, now) for now in (10.0, 11.0, 12.0, 12.9, 13.1)]
    assert [type(outcome) for outcome in outcomes] == [Refusal] * 4 + [Ticket]


def test_a_ticket_learns_what_it_really_costs() -> None:
    door = door_of()
    ticket = enter(door, 10, users=1)
    ticket.resize(63, 0)
    assert (door.queued("high"), ticket.tiles, ticket.users) == (63, 63, 0)
    ticket.resize(2, 2)
    assert door.queued("high") == 10
    ticket.release()
    ticket.resize(5, 5)
    assert door.queued("high") == 0


def test_a_deadline_is_checked_again() -> None:
    door = door_of()
    enter(door, 50)
    ticket = enter(door, 10)
    assert ticket.check(door.costs, 0.0601, 0.0) is None
    assert ticket.check(door.costs, 0.0601, 0.05) is None  # the wait is over
    assert ticket.check(door.costs, 0.0601, 0.04) is None
    late = ticket.check(door.costs, 0.0599, 0.04)
    assert late is not None
    assert late.detail == "an answer takes about 20.0 ms, 10.0 ms of it in the queue, and 19.9 ms are left"
    ticket.resize(63, 0)
    assert ticket.check(door.costs, 0.0601, 0.05) is not None


def test_a_key_has_so_many_requests_at_once() -> None:
    door = door_of(key_limit=2)
    tickets = [door.admit(1, 0, "high", "shop", LATE, 0.0) for _ in range(3)]
    assert [type(ticket) for ticket in tickets] == [Ticket, Ticket, Refusal]
    refusal = tickets[2]
    assert isinstance(refusal, Refusal)
    assert (refusal.reason, refusal.detail) == ("key", "2 requests of this key are under way, which is its limit")
    assert isinstance(door.admit(1, 0, "high", "shop", LATE, 0.0, key_limit=3), Ticket)
    assert isinstance(door.admit(1, 0, "high", "other", LATE, 0.0), Ticket)
    assert isinstance(door.admit(1, 0, "high", None, LATE, 0.0), Ticket)
    for ticket in tickets[:2]:
        assert isinstance(ticket, Ticket)
        ticket.release()
    assert isinstance(door.admit(1, 0, "high", "shop", LATE, 0.0), Ticket)


def test_keys_that_have_left_are_forgotten() -> None:
    door = door_of(key_limit=1)
    for number in range(1000):
        ticket = door.admit(1, 0, "high", f"key-{number}", LATE, 0.0)
        assert isinstance(ticket, Ticket)
        ticket.release()
    assert not door._keys


def test_tickets_teach_how_much_longer_it_takes() -> None:
    door = door_of()
    for step in range(300):
        now = float(step)
        first, second = enter(door, 10, now), enter(door, 10, now)
        first.release(now + 0.02)  # twice what the towers take
        second.release(now + 0.04)
    assert door.costs.slowdown == pytest.approx(2.0)
    slow = door.costs.slowdown
    enter(door, 10, 300.0).release(300.001, done=False)  # it was given up early: that tells nothing
    enter(door, 10, 300.0).release()
    assert door.costs.slowdown == slow
    enter(door, 10, 300.0).release(300.1, done=False)  # it would have taken longer still
    assert door.costs.slowdown > slow


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("queue_tiles", -1, "queue_tiles: must be at least 0, not -1"),
        ("burst_s", -0.1, "burst_s: must be at least 0, not -0.1"),
        ("low_share", 1.5, "low_share: must be between 0 and 1, not 1.5"),
        ("key_limit", 0, "key_limit: must be at least 1, not 0"),
    ],
)
def test_limits_are_checked(name: str, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(LIMITS, **{name: value})


def test_metrics() -> None:
    def value(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(name, labels) or 0.0

    refused, dropped = (
        value("farm_admission_refused_total", reason="key", priority="low"),
        value("farm_admission_dropped_total"),
    )
    count_refused("key", "low")
    count_dropped(3)
    door = door_of()
    enter(door, 10, users=1)
    enter(door, 6, priority="low")
    show_queue(door)
    assert value("farm_admission_refused_total", reason="key", priority="low") == refused + 1
    assert value("farm_admission_dropped_total") == dropped + 3
    assert value("farm_admission_queue_tiles", priority="high") == 14
    assert value("farm_admission_queue_tiles", priority="low") == 6
    assert value("farm_admission_wait_seconds") == pytest.approx(0.02)
    assert value("farm_admission_slowdown_ratio") == 1.0


ARRIVAL = st.tuples(
    st.integers(1, 63), st.integers(0, 1), st.sampled_from(["high", "low"]), st.sampled_from([None, "a", "b"])
)
STEP = st.one_of(
    st.tuples(st.just("come"), ARRIVAL, st.floats(0.0, 0.5)),
    st.tuples(st.just("leave"), st.integers(0, 50), st.booleans()),
    st.tuples(st.just("resize"), st.integers(0, 50), st.integers(1, 63)),
    st.tuples(st.just("pass"), st.floats(0.0, 3.0), st.none()),
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(STEP, max_size=60),
    st.builds(
        Limits,
        queue_tiles=st.integers(0, 300),
        burst_s=st.floats(0.0, 0.5),
        queue_s=st.floats(0.0, 0.2),
        floor_tiles=st.integers(0, 64),
        low_share=st.floats(0.0, 1.0),
        key_limit=st.one_of(st.none(), st.integers(1, 3)),
    ),
)
def test_the_tickets_are_the_queue_and_none_is_beyond_the_bounds(steps: list[tuple], limits: Limits) -> None:
    door, now = Admission(CostModel(tile_s=0.001, user_s=0.004, request_s=0.001), limits), 0.0
    tickets: list[tuple[Ticket, str, str | None]] = []
    for kind, what, more in steps:
        if kind == "pass":
            now += what
        elif kind == "come":
            tiles, users, priority, key = what
            before = door.queued("high"), door.queued("low"), door.wait_s()
            outcome = door.admit(tiles, users, priority, key, now + more, now)
            if isinstance(outcome, Refusal):
                assert before == (door.queued("high"), door.queued("low"), door.wait_s())
                assert outcome.retry_after_s >= 0
                assert tickets or outcome.reason == "deadline"
                continue
            if tickets:
                assert door.queued("high") + door.queued("low") <= limits.queue_tiles
                if priority == "low":
                    assert door.queued("low") <= limits.low_share * limits.queue_tiles
                    assert before[0] + before[1] < limits.floor_tiles or before[2] <= max(
                        limits.burst_s, limits.queue_s
                    )
            tickets.append((outcome, priority, key))
        elif tickets and kind == "leave":
            tickets.pop(what % len(tickets))[0].release(now, done=more)
        elif tickets and kind == "resize":
            tickets[what % len(tickets)][0].resize(more, what % 2)
        for line in ("high", "low"):
            mine = [ticket for ticket, priority, _ in tickets if priority == line]
            assert door.queued(line) == sum(ticket.tiles + 4 * ticket.users for ticket in mine)
        if limits.key_limit is not None:
            assert all(sum(key == name for _, _, key in tickets) <= limits.key_limit for name in ("a", "b"))
        assert door.wait_s() >= 0
        assert 0 <= door.costs.belief(now) <= 1
        assert door.costs.slowdown > 0
    for ticket, _, _ in tickets:
        ticket.release()
    assert (door.queued("high"), door.queued("low"), door.wait_s()) == (0, 0, 0.0)
