"""What the cost model learns, and what it does not believe."""

from __future__ import annotations

import heapq
import random

import pytest

from service.admission.cost import CostModel


def learned(tile_s: float = 0.001, user_s: float = 0.004, runs: int = 31, lanes: int = 1) -> CostModel:
    costs = CostModel(lanes)
    for run in range(runs):
        costs.observe_batch(10, 10 * tile_s, 2, 2 * user_s, float(run))
    return costs


def test_before_the_first_batch_it_assumes() -> None:
    costs = CostModel(tile_s=0.001, user_s=0.004, request_s=0.01)
    assert costs.work_s(5, 2) == pytest.approx(0.023)
    assert costs.work_s(5, 2, requests=3) == pytest.approx(0.043)
    assert costs.finish_s(5, 2, queued_s=0.1) == pytest.approx(0.123)
    with pytest.raises(ValueError, match="lanes: must be at least 1, not 0"):
        CostModel(lanes=0)


def test_the_first_batch_replaces_what_was_assumed() -> None:
    costs = CostModel(tile_s=1.0, user_s=1.0, request_s=1.0)
    costs.observe_batch(10, 0.01, 0, 0.0, 0.0)
    assert (costs.tile_s, costs.user_s) == (0.001, 1.0)  # no user tower ran
    costs.observe_batch(0, 0.0, 2, 0.008, 0.0)
    assert (costs.tile_s, costs.user_s) == (0.001, 0.004)
    costs.observe_rest(4, 0.02)
    costs.observe_rest(0, 9.0)  # nobody was answered
    assert costs.request_s == 0.005
    costs.observe_rest(1, -3.0)
    assert costs.request_s == 0.0


def test_a_few_runs_that_were_held_up_change_nothing() -> None:
    costs = learned()
    for _ in range(15):
        costs.observe_batch(10, 2.0, 2, 2.0, 31.0)
    assert costs.work_s(1, 1) == pytest.approx(0.005)
    costs.observe_batch(10, 2.0, 2, 2.0, 31.0)  # now they are the most
    assert costs.work_s(1, 1) == pytest.approx(1.2)


def test_a_queue_is_shared_by_the_lanes_and_a_request_is_not() -> None:
    assert learned(lanes=4).finish_s(10, 1, queued_s=0.08) == pytest.approx(0.02 + 0.014)


def test_the_slowdown_is_what_requests_took_to_what_was_expected() -> None:
    costs = CostModel()
    for _ in range(300):
        costs.observe_wait(expected_s=0.01, taken_s=0.025, work_s=0.002, now=0.0)
    assert costs.slowdown == pytest.approx(2.5)
    assert costs.finish_s(10, 0, queued_s=0.0) == pytest.approx(2.5 * costs.work_s(10, 0))
    for _ in range(35):  # half of what it knew is forgotten after 34.3 more
        costs.observe_wait(0.01, 0.015, 0.002, 0.0)
    assert costs.slowdown == pytest.approx(2.0, abs=0.01)


def test_one_wait_is_no_more_than_eight_times_a_surprise() -> None:
    costs = CostModel()
    costs.observe_wait(0.01, 60.0, 0.002, 0.0)
    assert costs.slowdown == pytest.approx(8.0)
    costs = CostModel()
    costs.observe_wait(0.01, 0.0, 0.002, 0.0)
    assert costs.slowdown == pytest.approx(1 / 8)
    costs.observe_wait(0.0, 1.0, 0.0, 0.0)  # nothing was expected: nothing is learned
    assert costs.slowdown == pytest.approx(1 / 8)


@pytest.mark.parametrize("order", ["as they came", "smallest first", "greatest first"])
def test_no_order_looks_like_a_slowdown(order: str) -> None:
    """One executor, busy 80 % of the time with jobs of 1 to 30 tiles: each order waits differently, none is slower."""
    draw, costs = random.Random(0), CostModel(tile_s=0.001)
    waiting: list[tuple[float, float, int, float]] = []  # rank, came, tiles, ahead
    now, due, queued, slowdowns = 0.0, 0.0, 0, []
    for _ in range(6000):
        tiles = 0
        if waiting:
            _, came, tiles, ahead_s = heapq.heappop(waiting)
            now += 0.001 * tiles
        else:
            now = due
        while due <= now:  # who comes while it runs finds it there
            size = draw.choice((1, 1, 1, 30))
            rank = {"as they came": due, "smallest first": size, "greatest first": -size}[order]
            heapq.heappush(waiting, (rank, due, size, 0.001 * queued))
            queued, due = queued + size, due + draw.expovariate(0.8 / 0.00825)
        if tiles:
            queued -= tiles
            costs.observe_wait(ahead_s + 0.001 * tiles, now - came, 0.001 * tiles, now)
            slowdowns.append(costs.slowdown)
    # below 1, because who is half done counts as if it were not begun
    assert sum(slowdowns) / len(slowdowns) == pytest.approx(0.86, abs=0.02)


def test_what_nothing_confirms_is_believed_less_and_less() -> None:
    costs = learned(runs=5)  # the last at 4 s
    assert [costs.belief(now) for now in (0.0, 4.0, 5.0, 6.0, 8.0)] == [1.0, 1.0, 1.0, 0.5, 0.125]
    costs.observe_wait(0.01, 0.01, 0.01, now=8.0)
    assert costs.belief(9.0) == 1.0
    assert CostModel().belief(0.0) == 0.0  # nothing was ever seen
