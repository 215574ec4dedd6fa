"""Models are changed under load; what is spoilt is refused, what turns out bad is left again."""

from __future__ import annotations

from loadtest.bench.faults_lab import Ground
from loadtest.bench.faults_reload import reload
from loadtest.bench.faults_spoilt import SPOILT, refused, rollback
from loadtest.bench.faults_workers import workers


def test_reloads_fail_nobody(ground: Ground) -> None:
    found = reload(ground)
    assert found["swap"]["requests"] > 10
    assert (found["failed"], found["wrong_answers"], found["old_answers"]) == (0, [], 0)


def test_spoilt_models_are_refused_and_the_old_one_goes_on(ground: Ground) -> None:
    found = refused(ground)
    assert set(found["models"]) == set(SPOILT)
    for one in found["models"].values():
        assert 400 <= one["status"] < 600
        assert one["detail"]
        assert one["kept"]
    assert (found["failed"], found["other_models"]) == (0, 0)


def test_a_model_that_gives_nan_is_left_again(ground: Ground) -> None:
    found = rollback(ground)
    assert found["back_s"] < 30
    assert (found["failed_without_guilt"], found["nan_answers"]) == (0, 0)


def test_four_workers_change_together(ground: Ground) -> None:
    found = workers(ground)
    assert found["answers"] > 50
    assert (found["old_answers"], found["mixed_answers"], found["failed"]) == (0, 0, 0)
