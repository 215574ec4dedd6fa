"""How long the place of a worker that ended stays empty."""

from __future__ import annotations

from service.lifecycle.places import Backoff


def test_the_pause_doubles_up_to_a_bound() -> None:
    backoff = Backoff(first_s=1.0, most_s=30.0)
    assert [backoff.pause_s(ends) for ends in (1, 2, 3, 4, 5, 6, 7, 10_000)] == [1, 2, 4, 8, 16, 30, 30, 30]


def test_a_worker_that_was_ready_for_long_begins_anew() -> None:
    backoff = Backoff(calm_s=60.0)
    assert backoff.ends(0, ready_s=0.0) == 1
    assert backoff.ends(4, ready_s=59.9) == 5
    assert backoff.ends(4, ready_s=60.0) == 1
