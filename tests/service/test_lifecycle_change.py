"""A change over all processes: what is told when, to whom, and what becomes of those that end meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.lifecycle.change import Change
from service.tasks import Cancel, LocalModel, Order, Prepare, Prepared, Switch, Switched

ORDER = Order(LocalModel("v2", Path("v2")), number=7)
PREPARE, SWITCH, CANCEL = Prepare(ORDER), Switch(7), Cancel(7)
READY, SWITCHED = Prepared(7), Switched(7, "v2")


def told(change: Change[str]) -> list[tuple[str, object]]:
    """By process."""
    return sorted(change.due(), key=lambda one: one[0])


@pytest.fixture
def prepared() -> Change[str]:
    """By workers a and b."""
    change = Change(ORDER, [], ["a", "b"])
    change.due()
    change.heard("a", READY)
    change.heard("b", READY)
    return change


def test_nobody_switches_before_all_have_prepared() -> None:
    change = Change(ORDER, [], ["a", "b"])
    assert told(change) == [("a", PREPARE), ("b", PREPARE)]
    change.heard("a", READY)
    change.heard("a", READY)
    assert (change.phase, told(change)) == ("workers", [])
    change.heard("b", READY)
    assert (change.phase, told(change)) == ("prepared", [])
    change.commit()
    assert told(change) == [("a", SWITCH), ("b", SWITCH)]
    change.heard("a", SWITCHED)
    assert change.late == ["b"]
    assert not change.is_over
    change.heard("b", SWITCHED)
    assert (change.phase, change.failure, told(change)) == ("done", "", [])


def test_engine_processes_prepare_first_and_let_go_last() -> None:
    change = Change(ORDER, ["e"], ["a"])
    assert told(change) == [("e", PREPARE)]
    change.heard("e", READY)
    assert told(change) == [("a", PREPARE)]
    change.heard("a", READY)
    change.commit()
    assert told(change) == [("a", SWITCH)]
    change.heard("a", SWITCHED)
    assert (change.phase, told(change)) == ("releasing", [("e", SWITCH)])
    change.heard("e", SWITCHED)
    assert change.phase == "done"


def test_one_that_cannot_prepare_ends_it_for_all() -> None:
    change = Change(ORDER, ["e"], ["a", "b"])
    change.heard("e", READY)
    change.due()
    change.heard("a", Prepared(7, "sha256 differs"))
    assert (change.phase, change.failure) == ("failed", "sha256 differs")
    assert told(change) == [("a", CANCEL), ("b", CANCEL), ("e", CANCEL)]
    change.heard("b", READY)
    assert (change.phase, change.committed) == ("failed", False)


def test_only_those_that_were_told_are_told_to_forget() -> None:
    change = Change(ORDER, ["e"], ["a"])
    change.due()
    change.heard("e", Prepared(7, "no memory"))
    assert told(change) == [("e", CANCEL)]


def test_a_worker_that_ends_while_it_prepares_ends_it(prepared: Change[str]) -> None:
    prepared.ended("a", "worker 12 ended with -9")
    assert (prepared.phase, prepared.failure) == ("failed", "worker 12 ended with -9")
    assert told(prepared) == [("b", CANCEL)]


def test_a_worker_that_ends_while_it_switches_is_not_waited_for(prepared: Change[str]) -> None:
    prepared.commit()
    prepared.ended("a", "worker 12 ended with -9")
    assert (prepared.late, prepared.committed) == (["b"], True)
    prepared.heard("b", SWITCHED)
    assert (prepared.phase, prepared.failure) == ("done", "")


def test_one_that_was_starting_with_the_old_must_end_first(prepared: Change[str]) -> None:
    prepared.commit(["c"])
    assert told(prepared) == [("a", SWITCH), ("b", SWITCH)]
    prepared.heard("a", SWITCHED)
    prepared.heard("b", SWITCHED)
    assert (prepared.phase, prepared.late) == ("switching", ["c"])
    prepared.ended("c", "killed")
    assert prepared.phase == "done"


def test_a_worker_that_becomes_ready_meanwhile_prepares_too(prepared: Change[str]) -> None:
    prepared.ready("c", engine=False)
    assert (prepared.phase, told(prepared)) == ("workers", [("c", PREPARE)])
    prepared.heard("c", READY)
    assert prepared.phase == "prepared"


def test_an_engine_process_that_becomes_ready_meanwhile() -> None:
    early = Change(ORDER, ["e"], ["a"])
    early.ready("f", engine=True)
    assert told(early) == [("e", PREPARE), ("f", PREPARE)]
    early.heard("e", READY)
    early.heard("f", READY)
    early.ready("g", engine=True)  # the workers that ask it have begun
    assert early.phase == "failed"


def test_nothing_stops_it_once_it_was_committed(prepared: Change[str]) -> None:
    prepared.commit()
    prepared.abort("too late")
    assert (prepared.phase, prepared.failure) == ("switching", "")


def test_answers_to_another_change_are_none(prepared: Change[str]) -> None:
    prepared.commit()
    prepared.heard("a", Switched(6, "v1"))
    prepared.heard("stranger", SWITCHED)
    assert sorted(prepared.late) == ["a", "b"]


def test_without_workers_there_is_nothing_to_wait_for() -> None:
    change = Change[str](ORDER, [], [])
    assert change.phase == "prepared"
    change.commit()
    assert change.phase == "done"
