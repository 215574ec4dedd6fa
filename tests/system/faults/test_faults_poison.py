"""One poisoned request among 64 fails alone."""

from __future__ import annotations

from loadtest.bench.faults_lab import Ground
from loadtest.bench.faults_poison import POISONS, REQUESTS, poison


def test_exactly_the_guilty_fails(ground: Ground) -> None:
    found = poison(ground)
    assert found["fails"]["batch_failures"]["halved"] > 0  # they were in one batch
    for how in POISONS:
        assert found[how]["innocent"] == {200: REQUESTS - 1}
        assert found[how]["wrong_answers"] == []
        assert len(found[how]["guilty"]) == 1
        assert min(found[how]["guilty"]) >= 500
