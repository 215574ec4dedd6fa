"""The circuit, with exact numbers and times that are told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store.reading.breaker import Breaker, State


class Recorded(Breaker):
    """Of 3 in a row, or half of 8, probed every second; its states in turn."""

    def __init__(self) -> None:
        self.states: list[State] = []
        super().__init__(in_row=3, share=0.5, window=8, probe_interval_s=1.0, on_change=self.states.append)

    def ask(self, works: bool, now: float = 0.0) -> bool:
        """Whether it may be asked; it is, and works or not."""
        attempt = self.admit(now)
        if attempt is None:
            return False
        if works:
            self.succeeded(attempt)
        else:
            self.failed(attempt, now)
        return True


@pytest.fixture
def breaker() -> Recorded:
    return Recorded()


def opened(breaker: Recorded, now: float = 10.0) -> None:
    for _ in range(3):
        assert breaker.ask(False, now)
    assert breaker.state == "open"


def test_it_opens_after_failures_in_a_row(breaker: Recorded) -> None:
    for works in (False, False, True, False, False):
        assert breaker.ask(works)
    assert breaker.state == "closed"
    breaker.ask(False)
    assert (breaker.state, breaker.states) == ("open", ["open"])
    assert breaker.admit(0.0) is None


@pytest.mark.parametrize(
    ("course", "state"),
    [
        ("01010110", "open"),  # 4 of 8
        ("0101010", "closed"),  # there are not 8 yet
        ("01011011", "closed"),  # 3 of 8
        ("010101010", "open"),  # 4 of 8 already before; a success opens nothing
        ("11111111010101", "closed"),  # counted from the first failure on: 6 of them
        ("0101101101101", "closed"),  # never more than 3 of the last 8
        ("0101101100", "open"),  # 01101100
    ],
)
def test_it_opens_at_a_share_of_the_last_ones(breaker: Recorded, course: str, state: State) -> None:
    for step in course:
        breaker.ask(step == "1")
    assert breaker.state == state


def test_one_at_a_time_tries_when_the_interval_is_over(breaker: Recorded) -> None:
    opened(breaker)
    assert breaker.admit(10.999) is None
    probe = breaker.admit(11.0)
    assert probe is not None
    assert (breaker.state, breaker.admit(11.0), breaker.admit(99.0)) == ("half_open", None, None)
    breaker.failed(probe, 11.5)
    assert (breaker.state, breaker.admit(12.4)) == ("open", None)
    probe = breaker.admit(12.5)
    assert probe is not None
    breaker.succeeded(probe)
    assert breaker.states == ["open", "half_open", "open", "half_open", "closed"]
    for works in (False, False, True):
        assert breaker.ask(works, 13.0)
    assert breaker.state == "closed"


def test_a_probe_that_was_given_up_makes_way_at_once(breaker: Recorded) -> None:
    opened(breaker)
    probe = breaker.admit(11.0)
    assert probe is not None
    breaker.told_nothing(probe, 11.2)
    assert breaker.state == "open"
    assert breaker.ask(True, 11.2)
    assert breaker.state == "closed"


def test_what_began_before_is_not_heard(breaker: Recorded) -> None:
    early = [breaker.admit(0.0) for _ in range(4)]
    opened(breaker)
    for attempt in early[:3]:
        assert attempt is not None
        breaker.succeeded(attempt)
        breaker.failed(attempt, 50.0)
        breaker.told_nothing(attempt, 0.0)
    assert (breaker.state, breaker.admit(10.999)) == ("open", None)
    probe = breaker.admit(11.0)
    assert probe is not None
    assert early[3] is not None
    breaker.failed(early[3], 11.0)
    assert breaker.state == "half_open"
    breaker.succeeded(probe)
    breaker.failed(probe, 12.0)
    breaker.failed(early[3], 12.0)
    assert breaker.ask(False, 12.0)
    assert breaker.state == "closed"


def test_giving_up_is_nothing_while_it_is_closed(breaker: Recorded) -> None:
    for _ in range(2):
        breaker.ask(False)
    attempt = breaker.admit(0.0)
    assert attempt is not None
    breaker.told_nothing(attempt, 0.0)
    assert breaker.state == "closed"
    breaker.ask(False)
    assert breaker.state == "open"


@given(st.lists(st.tuples(st.sampled_from("snf"), st.floats(0, 2)), max_size=80))
def test_whatever_happens_it_is_asked_again(course: list[tuple[str, float]]) -> None:
    """At most one probe is under way, and a store that works is asked by all within the interval."""
    breaker, now, under_way = Recorded(), 0.0, 0
    for outcome, after in course:
        now += after
        attempt = breaker.admit(now)
        if attempt is None:
            continue
        under_way += 1
        if breaker.state == "half_open":
            assert breaker.admit(now) is None
        if outcome == "s":
            breaker.succeeded(attempt)
        elif outcome == "n":
            breaker.told_nothing(attempt, now)
        else:
            breaker.failed(attempt, now)
    assert breaker.ask(True, now + 1.0)
    assert breaker.state == "closed"
    assert all(a != b for a, b in zip(breaker.states, breaker.states[1:], strict=False))
