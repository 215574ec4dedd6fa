"""Rankings go on, with the last good histories, while the store's server or the way to it fails."""

from __future__ import annotations

from typing import Any

import pytest

from loadtest.bench.faults_lab import Ground
from loadtest.bench.faults_redis import FAULTS, redis, redis_claims

NAMES = ("killed", "garbage", "partitioned")


@pytest.fixture(scope="module")
def found(ground: Ground) -> dict[str, Any]:
    return redis(ground, [fault for fault in FAULTS if fault.name in NAMES])


@pytest.mark.parametrize("name", NAMES)
def test_everybody_is_answered(found: dict[str, Any], name: str) -> None:
    figures = found["faults"][name]
    assert figures["requests"] > 20
    assert figures["statuses"] == {200: figures["requests"]}


@pytest.mark.parametrize("name", NAMES)
def test_whoever_was_seen_before_keeps_a_history(found: dict[str, Any], name: str) -> None:
    figures = found["faults"][name]
    assert figures["repeats"] > 3
    assert figures["repeat_share"] >= 0.95


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_lacking_while_the_store_is_healthy(found: dict[str, Any], name: str) -> None:
    figures = found["faults"][name]
    assert figures["calm_requests"] > 5
    assert figures["calm_degraded"] == 0


def test_answers_are_right_in_form_and_none_is_lost(found: dict[str, Any]) -> None:
    assert found["wrong_answers"] == []
    assert found["never_answered"] == 0
    assert len(redis_claims(found)) == 5 * len(NAMES) + 1
