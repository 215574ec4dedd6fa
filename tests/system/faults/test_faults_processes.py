"""Workers that are killed, and instances that are restarted, under load."""

from __future__ import annotations

from loadtest.bench.faults_lab import Ground
from loadtest.bench.faults_restarts import kill, rolling

_CLOSED_TOGETHER = 2  # of hundreds of idle connections: HTTP/1.1 cannot keep one from being closed and used at a time


def test_kill_9_of_one_of_four_loses_what_it_had_and_no_more(ground: Ground) -> None:
    found = kill(ground)
    assert found["statuses"][200] > 50
    assert found["lost"] <= found["in_flight"]
    assert found["failed_otherwise"] == 0
    assert len(found["back_s"]) == 1


def test_a_rolling_restart_fails_no_more_than_idle_connections(ground: Ground) -> None:
    found = rolling(ground)
    assert found["exit_statuses"] == [0, 0]
    assert found["statuses"][200] > 50
    assert set(found["statuses"]) == {200}
    assert found["wrong_answers"] == []
    assert found["errors"] <= _CLOSED_TOGETHER
