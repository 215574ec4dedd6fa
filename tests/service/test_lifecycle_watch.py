"""Whether a model must go, and whether a worker gets on."""

from __future__ import annotations

from pathlib import Path

from service.lifecycle.pulses import Outcomes, Pulse, Pulses
from service.lifecycle.watch import Watch


def watch() -> Watch:
    return Watch(3, until=100.0, most_faults=0.02, least_requests=200)


def of_most(*workers: Outcomes) -> list[Pulse]:
    """Of workers whose users are not split."""
    return [Pulse(outcomes=worker) for worker in workers]


def test_faults_are_a_share_of_all_workers_requests() -> None:
    assert watch().judge(of_most(Outcomes(3, 150, 2), Outcomes(3, 50, 2))) == ""
    assert watch().judge(of_most(Outcomes(3, 150, 2), Outcomes(3, 50, 3))) == (
        "5 of 200 requests failed, at most 0.02 of them may"
    )


def test_few_requests_say_nothing_of_a_share() -> None:
    assert watch().judge(of_most(Outcomes(3, 199, 199))) == ""


def test_what_is_no_probability_is_told_by_the_third() -> None:
    assert watch().judge(of_most(Outcomes(3, 10, 1, 1), Outcomes(3, 10, 1, 1))) == ""
    assert (
        watch().judge(of_most(Outcomes(3, 10, 2, 2), Outcomes(3, 10, 1, 1))) == "3 of 20 answers were no probabilities"
    )


def test_the_model_of_a_small_split_is_judged_by_its_own_requests() -> None:
    """One in a hundred users, and every request of theirs fails."""
    workers = [Pulse(outcomes=Outcomes(3, 9_900, 0), split=Outcomes(3, 100, 100)) for _ in range(2)]
    assert watch().judge(workers) == ("the split's model: 200 of 200 requests failed, at most 0.02 of them may")
    spoilt = [Pulse(outcomes=Outcomes(3, 9_900, 0), split=Outcomes(3, 3, 3, 3))]
    assert watch().judge(spoilt) == "the split's model: 3 of 3 answers were no probabilities"
    of_another_order = [Pulse(outcomes=Outcomes(3, 9_900, 0), split=Outcomes(2, 1_000, 1_000, 1_000))]
    assert watch().judge(of_another_order) == ""


def test_the_model_of_most_is_judged_without_the_split() -> None:
    workers = [Pulse(outcomes=Outcomes(3, 200, 5), split=Outcomes(3, 10_000, 0))]
    assert watch().judge(workers) == "5 of 200 requests failed, at most 0.02 of them may"


def test_outcomes_of_another_order_do_not_count() -> None:
    assert watch().judge(of_most(Outcomes(2, 1000, 1000, 1000))) == ""


def test_it_is_over_in_time() -> None:
    assert [watch().is_over(now) for now in (99.9, 100.0)] == [False, True]


def test_a_pulse_is_read_as_it_was_written(tmp_path: Path) -> None:
    written, read = Pulses.create(tmp_path / "pulses", 3), Pulses(tmp_path / "pulses")
    of_split = Outcomes(4, 9, 8, 6)
    pulses = [Pulse(), Pulse(1.5, 0.25, Outcomes(4, 2**40, 7, 2), of_split), Pulse(2.5, 0.0, Outcomes(5, 1, 0, 0))]
    for worker, pulse in enumerate(pulses):
        written.set(worker, pulse)
    assert [read.get(worker) for worker in range(3)] == pulses
    written.clear(1)
    assert [read.get(worker) for worker in range(3)] == [Pulse(), Pulse(), pulses[2]]


def test_a_worker_is_stuck_when_its_loop_or_its_oldest_batch_is() -> None:
    assert Pulse().stuck_s(1000.0) == 0.0  # it has not begun
    assert Pulse(beat=998.0).stuck_s(1000.0) == 2.0
    assert Pulse(beat=999.0, busy_s=30.0).stuck_s(1000.0) == 31.0
