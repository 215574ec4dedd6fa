"""More requests than a core can answer, and slow clients."""

from __future__ import annotations

from loadtest.bench.faults_lab import Ground
from loadtest.bench.faults_overload import overload
from loadtest.bench.faults_slow import slowloris


def test_what_is_too_much_is_refused(strict_ground: Ground) -> None:
    found = overload(strict_ground)
    assert found["statuses"][200] > 50
    assert found["rejected"] > 10
    assert set(found["statuses"]) <= {200, 503, 504}
    assert found["failed"] == 0
    assert set(found["problems"]) <= {"overloaded", "deadline-exceeded"}
    assert found["wrong_answers"] == []


def test_slow_clients_fail_nobody(ground: Ground) -> None:
    found = slowloris(ground)
    assert min(found["slow_clients"]) == ground.sizes.slow_clients
    assert found["among"]["failed"] == 0
