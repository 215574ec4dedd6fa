"""The batch policy: exact batches, and simulated traffic on a clock that only the test moves."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.scoring.policy import LOW_PASSES, PASSES, BatchPolicy, Job, Share

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


def low(name: str, candidates: int, kept: bool = True) -> Named:
    return Named(candidates, kept, True, name=name)


def high(name: str, candidates: int) -> Named:
    return Named(candidates, True, name=name)


def policy_with(*jobs: Named, batch_tiles: int = BATCH_TILES) -> BatchPolicy[Named]:
    policy = BatchPolicy[Named](TILE, batch_tiles, USER_TILES)
    for job in jobs:
        policy.add(job)
    return policy


def test_low_priority_goes_after_high_whatever_its_size() -> None:
    policy = policy_with(low("l1", 1), low("l2", 40), high("h1", 500), high("h2", 30))
    assert take(policy) == [("h2", 0, 30), ("h1", 0, 500), ("l1", 0, 1), ("l2", 0, 40)]
    policy = policy_with(low("l1", 1), high("h1", 900), high("h2", 300))
    assert take(policy) == [("h2", 0, 300)]  # what is left of the batch is too small for h1, and not for l1
    assert take(policy) == [("h1", 0, 900), ("l1", 0, 1)]


def test_low_priority_waits_while_a_cut_job_of_high_is_left_over() -> None:
    policy = policy_with(low("l1", 1), high("h1", 2000))
    assert take(policy) == [("h1", 0, 1024)]
    assert take(policy) == [("h1", 1024, 2000), ("l1", 0, 1)]
    policy = policy_with(low("l1", 1), high("h1", 2000))
    assert take(policy, idle=3) == [("h1", 0, 512)]  # l1 is for whoever comes when h1 is spread
    assert [take(policy, idle) for idle in (2, 1)] == [[("h1", 512, 1024)], [("h1", 1024, 1536)]]
    assert take(policy) == [("h1", 1536, 2000), ("l1", 0, 1)]


def test_a_large_job_of_low_priority_is_cut_and_filled_like_others() -> None:
    job = low("l1", 2000, kept=False)
    policy = policy_with(job, high("h1", 64))
    assert take(policy) == [("h1", 0, 64), ("l1", 0, 896)]  # 28 tiles and the user tower
    assert (take(policy), len(policy)) == ([], 0)
    finish(policy, job, 0, 896)
    policy.add(high("h2", 512))
    assert take(policy) == [("h2", 0, 512), ("l1", 896, 1408)]


def saturated(policy: BatchPolicy[Named], batches: int, first: int = 0) -> list[Batch]:
    """Each batch could be filled by high priority alone."""
    taken = []
    for number in range(first, first + batches):
        for place in range(16):
            policy.add(high(f"{number}.{place}", 64))
        taken.append(take(policy))
    return taken


def test_low_priority_does_not_starve() -> None:
    policy = policy_with(low("l1", 64), low("l2", 2000))
    before = saturated(policy, LOW_PASSES)
    assert not [name for batch in before for name, _, _ in batch if name.startswith("l")]
    turn = saturated(policy, 1, LOW_PASSES)[0]
    assert turn[:2] == [("l1", 0, 64), ("l2", 0, 6 * TILE)]  # a quarter of a batch is 8 tiles
    assert len(turn) == 2 + 12  # of two tiles each
    more = saturated(policy, 3 * (LOW_PASSES + 1), LOW_PASSES + 1)
    shares = [share for batch in more for share in batch if share[0] == "l2"]
    assert shares == [("l2", 192, 448), ("l2", 448, 704), ("l2", 704, 960)]


def test_the_overdue_of_both_priorities_share_half_a_batch() -> None:
    policy = policy_with(low("l1", 2000), high("big", 2000))
    for number in range(LOW_PASSES):
        saturated(policy, 1, number)
    for _ in range(PASSES):
        policy.add(high("x", 1024))  # so that the next is not the turn of big
    ahead = [share for share in take(policy) if share[0] in ("l1", "big")]
    assert ahead[0] == ("l1", 0, 8 * TILE)
    assert sum(stop - start for _, start, stop in ahead) <= 16 * TILE


def test_an_overdue_job_of_low_priority_takes_one_tile_at_least() -> None:
    job = low("l1", 70, kept=False)
    policy = policy_with(job, batch_tiles=4)  # of which a quarter is less than a user tower
    for number in range(LOW_PASSES):
        policy.add(high(f"{number}", 128))
        assert take(policy) == [(f"{number}", 0, 128)]
    policy.add(high("h", 128))
    assert take(policy) == [("l1", 0, 32)]
    assert take(policy) == [("h", 0, 128)]


def test_who_cannot_be_done_in_time_is_dropped() -> None:
    policy, jobs = policy_of(("a", 32), ("b", 320), ("c", 320), ("d", 32))  # costs 3, 12, 12, 3
    jobs["a"].deadline, jobs["b"].deadline, jobs["c"].deadline = 1.03, 1.12, 1.11
    assert policy.expire(1.0, 0.01) == [jobs["c"]]  # 12 tiles of 0.01 s would end at 1.12
    assert policy.expire(1.0, 0.01) == []
    assert policy.expire(1.05, 0.0) == [jobs["a"]]
    assert len(policy) == 2
    assert take(policy) == [("d", 0, 32), ("b", 0, 320)]
    assert (jobs["a"].dropped, jobs["b"].dropped) == (True, False)


def test_deadlines_of_low_priority_and_of_cut_jobs_are_kept_too() -> None:
    late, cut = low("l1", 32), high("h1", 2000)
    late.deadline = cut.deadline = 1.0
    policy = policy_with(late, cut)
    assert take(policy) == [("h1", 0, 1024)]
    assert policy.expire(0.68, 0.01) == []  # 31 tiles are left of one
    assert policy.expire(0.7, 0.01) == [cut]
    assert policy.expire(0.995, 0.01) == [late]
    assert not finish(policy, cut, 0, 1024)
    assert (take(policy), len(policy)) == ([], 0)


def test_drain_keeps_the_order_of_arrival_over_priorities() -> None:
    jobs = [low("a", 500), high("b", 60), low("c", 1), high("d", 2000)]
    policy = policy_with(*jobs)
    assert policy.drain() == jobs
    assert (len(policy), take(policy)) == (0, [])


@given(
    st.lists(
        st.tuples(st.integers(1, 2000), st.booleans(), st.booleans(), st.floats(0.0, 3.0)), min_size=1, max_size=30
    ),
    st.integers(0, 3),
    st.integers(1, 64),
)
@settings(max_examples=150, deadline=None)
def test_every_job_is_scored_once_or_dropped(
    given_jobs: list[tuple[int, bool, bool, float]], idle: int, batch_tiles: int
) -> None:
    jobs = [Named(count, kept, is_low, deadline) for count, kept, is_low, deadline in given_jobs]
    policy = policy_with(*jobs, batch_tiles=batch_tiles)
    now, late, shares = 0.0, [], []
    while len(policy):
        late += policy.expire(now, 0.001)
        batch = policy.take(idle)
        cost = sum(-(-(share.stop - share.start) // TILE) + USER_TILES * (not share.job.has_state) for share in batch)
        assert cost <= max(batch_tiles, 1 + USER_TILES)
        shares += batch
        now += 0.001 * cost
        for share in batch:
            policy.finish(share)
    for job in jobs:
        parts = sorted((share.start, share.stop) for share in shares if share.job is job)
        assert [start for start, _ in parts] == [0, *(stop for _, stop in parts)][: len(parts)]
        assert (job in late) == (job.scored < job.candidates) == job.dropped


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
