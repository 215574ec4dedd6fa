"""The batch policy: exact batches, and simulated traffic on a clock that only the test moves."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from service.scoring.policy import PASSES, BatchPolicy, Job, Share

TILE, BATCH_TILES, USER_TILES = 32, 32, 2

Batch = list[tuple[str, int, int]]


@dataclass(eq=False)
class Named(Job):
    name: str = ""


def policy_of(
    *jobs: tuple[str, int], kept: bool = False, batch_tiles: int = BATCH_TILES
) -> tuple[BatchPolicy[Named], dict[str, Named]]:
    policy = BatchPolicy[Named](TILE, batch_tiles, USER_TILES)
    named = {name: Named(candidates, kept, name=name) for name, candidates in jobs}
    for job in named.values():
        policy.add(job)
    return policy, named


def take(policy: BatchPolicy[Named], idle: int = 0) -> Batch:
    return [(share.job.name, share.start, share.stop) for share in policy.take(idle)]


def finish(policy: BatchPolicy[Named], job: Named, start: int, stop: int) -> bool:
    return policy.finish(Share(job, start, stop))


def test_a_job_alone_is_taken_at_once() -> None:
    for candidates in (1, 32, 33, 200, 30 * 32):
        policy, _ = policy_of(("a", candidates))
        assert take(policy) == [("a", 0, candidates)]
        assert (take(policy), len(policy)) == ([], 0)


def test_costs_are_tiles_and_the_user_tower() -> None:
    policy, jobs = policy_of(("a", 1), ("b", 32), ("c", 33), ("d", 2000))
    assert [policy.cost(job) for job in jobs.values()] == [3, 3, 4, 65]
    policy, jobs = policy_of(("a", 1), ("b", 32), ("c", 33), ("d", 2000), kept=True)
    assert [policy.cost(job) for job in jobs.values()] == [1, 1, 2, 63]


def test_the_smallest_go_first_and_ties_as_they_came() -> None:
    policy, _ = policy_of(("e", 500), ("d", 100), ("a", 33), ("c", 64), ("b", 32))
    assert take(policy) == [("b", 0, 32), ("a", 0, 33), ("c", 0, 64), ("d", 0, 100), ("e", 0, 500)][:4]
    assert take(policy) == [("e", 0, 500)]  # 18 tiles did not fit beside 17


def test_a_batch_is_bounded_by_cost() -> None:
    policy, _ = policy_of(*((f"{i:02}", 50) for i in range(20)))
    assert [len(take(policy)) for _ in range(4)] == [8, 8, 4, 0]  # 2 tiles and a user tower of 2 each
    policy, _ = policy_of(*((f"{i:02}", 50) for i in range(20)), kept=True)
    assert [len(take(policy)) for _ in range(3)] == [16, 4, 0]


def test_a_large_job_is_cut_and_waits_for_its_state() -> None:
    policy, jobs = policy_of(("a", 2000))
    assert take(policy) == [("a", 0, 960)]  # 30 tiles and the user tower
    assert (take(policy), len(policy)) == ([], 0)
    assert not finish(policy, jobs["a"], 0, 960)
    assert len(policy) == 1
    assert take(policy) == [("a", 960, 1984)]
    assert take(policy) == [("a", 1984, 2000)]
    assert take(policy) == []
    assert not finish(policy, jobs["a"], 1984, 2000)  # the later share is done first
    assert finish(policy, jobs["a"], 960, 1984)
    assert take(policy) == []


def test_what_is_cut_once_fills_what_is_left_of_a_batch() -> None:
    policy, jobs = policy_of(("a", 2000), kept=True)
    assert take(policy) == [("a", 0, 1024)]
    policy.add(Named(50, name="b"))
    assert take(policy) == [("b", 0, 50), ("a", 1024, 1920)]
    assert jobs["a"].taken == 1920
    assert take(policy) == [("a", 1920, 2000)]


def test_a_single_tile_may_always_go() -> None:
    policy, jobs = policy_of(("a", 70), batch_tiles=1)
    assert take(policy) == [("a", 0, 32)]
    finish(policy, jobs["a"], 0, 32)
    assert [take(policy) for _ in range(3)] == [[("a", 32, 64)], [("a", 64, 70)], []]


def test_a_large_job_is_spread_over_idle_executors_once_its_state_is_known() -> None:
    policy, jobs = policy_of(("a", 2000))
    assert take(policy, idle=3) == [("a", 0, 32)]  # the user tower, and no more than goes with it
    assert take(policy, idle=2) == []
    finish(policy, jobs["a"], 0, 32)
    spread = [take(policy, idle) for idle in (3, 2, 1, 0)]
    assert spread == [[("a", 32, 544)], [("a", 544, 1056)], [("a", 1056, 1536)], [("a", 1536, 2000)]]
    policy, _ = policy_of(("a", 1200), kept=True)
    assert take(policy, idle=30) == [("a", 0, 256)]  # a quarter of a batch at least
    policy, _ = policy_of(("a", 900))
    assert take(policy, idle=3) == [("a", 0, 900)]  # fits a batch


def test_who_was_passed_over_four_times_goes_first_with_half_a_batch() -> None:
    policy, jobs = policy_of(("big", 2000), kept=True)
    for round_ in range(PASSES):
        for i in range(16):
            policy.add(Named(64, True, name=f"{round_}.{i}"))
        assert [name for name, _, _ in take(policy)] == [f"{round_}.{i}" for i in range(16)]
    for i in range(16):
        policy.add(Named(64, True, name=f"4.{i}"))
    assert take(policy) == [("big", 0, 512), *((f"4.{i}", 0, 64) for i in range(8))]
    assert jobs["big"].taken == 512
    policy.add(Named(64, True, name="late"))
    assert take(policy)[0][0] == "4.8"  # its turn is over


def test_the_overdue_share_half_a_batch() -> None:
    policy, jobs = policy_of(("a", 600), ("b", 700))
    for i in range(PASSES + 1):
        for j in range(16 if i < PASSES else 7):
            policy.add(Named(64, True, name=f"{i}.{j}"))
        if i < PASSES:
            assert len(take(policy)) == 16
    small = [(f"4.{j}", 0, 64) for j in range(7)]
    assert take(policy) == [("a", 0, 448), *small]  # half a batch is 14 tiles and the user tower
    assert take(policy) == [("b", 0, 700)]  # a waits for its state
    finish(policy, jobs["a"], 0, 448)
    policy.add(Named(50, True, name="late"))
    assert take(policy) == [("late", 0, 50), ("a", 448, 600)]


def test_rests_of_cut_jobs_leave_half_a_batch_to_the_others() -> None:
    policy, jobs = policy_of(*((f"big{i:02}", 1000) for i in range(20)))
    for share in [policy.take()[0] for _ in jobs]:
        policy.finish(share)
    assert {policy.cost(job) for job in jobs.values()} == {2}
    for i in range(4):
        policy.add(Named(50, name=f"{i}"))
    rests, small = [(f"big{i:02}", 960, 1000) for i in range(8)], [(f"{i}", 0, 50) for i in range(4)]
    assert take(policy) == rests + small


def test_empty_takes_do_not_make_anybody_overdue() -> None:
    policy, jobs = policy_of(("a", 2000))
    policy.take()
    for _ in range(10):
        assert take(policy) == []
    finish(policy, jobs["a"], 0, 960)
    policy.add(Named(50, True, name="b"))
    assert take(policy)[0][0] == "b"


def test_dropped_jobs_are_never_taken() -> None:
    policy, jobs = policy_of(("a", 50), ("b", 60), ("c", 2000))
    policy.drop(jobs["b"])
    policy.drop(jobs["b"])
    assert take(policy) == [("a", 0, 50), ("c", 0, 832)]
    policy.drop(jobs["c"])  # while its state is computed
    finish(policy, jobs["c"], 0, 832)
    assert (take(policy), len(policy)) == ([], 0)
    policy.drop(Named(1, name="never added"))


def test_drain() -> None:
    policy, jobs = policy_of(("a", 500), ("b", 60), ("c", 2000))
    assert policy.drain() == list(jobs.values())
    assert (len(policy), take(policy)) == (0, [])


@dataclass(eq=False)
class Timed(Job):
    client: int = 0
    came: float = 0.0
    free: float = 0.0  # how long until the next executor was free when it came
    first: float = field(default=-1.0, init=False)  # when a batch took it


class Traffic:
    """A closed loop on a fake clock: each client asks again when it is answered.  A tile takes 1, a batch 0.5 more."""

    def __init__(self, sizes: Sequence[int], executors: int, kept: Callable[[int], bool], shared: bool) -> None:
        """sizes: one for each client, or `shared`, taken in turns by whoever asks;  kept: by number of the request."""
        self.policy = BatchPolicy[Timed](TILE, 2 * BATCH_TILES, 2 * USER_TILES)  # as the service has them
        self.sizes, self.kept, self.shared = sizes, kept, shared
        self.now, self.idle, self.asked, self.batches, self.greatest = 0.0, executors, 0, 0, 0
        self.running: list[tuple[float, int, list[Share[Timed]]]] = []  # end, number, batch
        self.done: list[Timed] = []

    def run(self, jobs: int) -> list[Timed]:
        for client in range(len(self.sizes)):
            self._ask(client)
        while len(self.done) < jobs:
            self.now, _, batch = heapq.heappop(self.running)
            self.idle += 1
            answered = [share.job for share in batch if self.policy.finish(share)]
            self.done += answered
            self._start()  # the executor does not wait for the clients
            for job in answered:
                self._ask(job.client)
        return self.done

    def _ask(self, client: int) -> None:
        size = self.sizes[self.asked % len(self.sizes) if self.shared else client]
        free = 0.0 if self.idle else self.running[0][0] - self.now
        self.policy.add(Timed(size, self.kept(self.asked), client=client, came=self.now, free=free))
        self.asked += 1
        self._start()

    def _start(self) -> None:
        while self.idle and (batch := self.policy.take(self.idle - 1)):
            for share in batch:
                share.job.first = self.now if share.job.first < 0 else share.job.first
            cost = sum(self._cost(share) for share in batch)
            self.greatest = max(self.greatest, cost)
            self.idle -= 1
            self.batches += 1
            heapq.heappush(self.running, (self.now + 0.5 + cost, self.batches, batch))

    def _cost(self, share: Share[Timed]) -> int:
        return -(-(share.stop - share.start) // TILE) + (0 if share.job.has_state else 2 * USER_TILES)


@pytest.mark.parametrize("executors", [1, 2, 4])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("every", [0, 3, 2, 1])
def test_fifty_candidates_never_wait_for_more_than_one_batch(executors: int, shared: bool, every: int) -> None:
    """16 clients, 50 to 2,000 candidates; the state is kept never, for every third, every second, always."""
    traffic = Traffic([50, 200, 500, 2000] * 4, executors, lambda n: every > 0 and n % every == 0, shared)
    done = traffic.run(4000)
    assert traffic.greatest == 2 * BATCH_TILES
    small = [job for job in done if job.candidates == 50]
    assert len(small) >= 1000
    assert [job for job in small if job.first - job.came > job.free] == []
    assert max(job.free for job in small) <= 2 * BATCH_TILES + 0.5
    # each of the others goes first once at most, then nobody was passed over longer
    assert max(job.first - job.came for job in done) <= (PASSES + 16) * (2 * BATCH_TILES + 0.5)
    assert sum(job.candidates == 2000 for job in done) > 100
