"""Metrics of what rankings read and put out, against NumPy; and that few of many are looked at."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest
from prometheus_client import REGISTRY
from service_facts import Client, Facts

from feature_store.matrices import UserInputs
from feature_store.records import UserRecord, known_at
from feature_store.schema import MISSING
from feature_store.store import open_store
from feature_store.throttle import Throttle
from service.drift import observe_histories, observe_probabilities


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def inputs(video: np.ndarray, live: np.ndarray) -> UserInputs:
    """Of one user with these events [E, F], and room for ten of each domain."""
    padded = {}
    for domain, events in (("video", video), ("live", live)):
        matrix = np.full((1, 10, events.shape[1]), MISSING)
        matrix[0, : len(events)] = events
        padded[domain] = matrix
    lengths = np.array([len(video)]), np.array([len(live)])
    return UserInputs(padded["video"], lengths[0], padded["live"], lengths[1], np.zeros((1, 3), int), np.array([0]))


def test_probabilities_make_the_mean_and_the_quantiles() -> None:
    drawn = np.random.default_rng(3).beta(1, 30, 2000)
    before = value("farm_score_probability_sum", task="made"), value("farm_score_probability_count", task="made")
    for probability in drawn:
        observe_probabilities(np.array([probability, 0.0]), ("made", "other"))
    count = value("farm_score_probability_count", task="made") - before[1]
    assert count == 2000
    assert (value("farm_score_probability_sum", task="made") - before[0]) / count == pytest.approx(drawn.mean())
    for bound in ("0.001", "0.01", "0.02", "0.05", "0.1", "1.0"):
        below = value("farm_score_probability_bucket", task="made", le=bound)
        assert below == np.count_nonzero(drawn <= float(bound))
    assert value("farm_score_probability_bucket", task="other", le="1e-05") == 2000


def test_histories_of_a_user_who_is_not_known_are_empty() -> None:
    names = [("farm_history_events_bucket", {"le": "0.0"}), ("farm_history_events_count", {})]
    skipped = [(f"farm_history_{name}_count", {}) for name in ("age_seconds", "missing_ratio")]
    before = [value(name, domain="live", **labels) for name, labels in names + skipped]
    observe_histories(None, inputs(np.zeros((0, 4), int), np.zeros((0, 4), int)), 1000)
    after = [value(name, domain="live", **labels) for name, labels in names + skipped]
    assert np.subtract(after, before).tolist() == [1, 1, 0, 0]


def test_missing_values_of_the_events_that_were_read() -> None:
    video = np.array([[1, 2, 3, 4], [1, MISSING, 3, MISSING]])
    name = "farm_history_missing_ratio_sum"
    before = value(name, domain="video"), value("farm_history_events_sum", domain="video")
    observe_histories(None, inputs(video, video[:1]), 1000)
    assert value(name, domain="video") - before[0] == pytest.approx(0.25)
    assert value("farm_history_events_sum", domain="video") - before[1] == 2


def test_the_age_is_that_of_the_newest_stored_event(store_url: str, facts: Facts) -> None:
    async def read() -> UserRecord | None:
        async with open_store(store_url) as store:
            return (await store.read(facts.users[0], [])).user

    user = asyncio.run(read())
    assert user is not None
    newest = int(known_at(user.live).max())
    none = inputs(np.zeros((0, 4), int), np.zeros((0, 4), int))
    name = "farm_history_age_seconds_sum"
    before = value(name, domain="live")
    observe_histories(user, none, newest + 90_000)
    observe_histories(user, none, newest - 5)  # the client's clock may be behind
    assert value(name, domain="live") - before == pytest.approx(90.0)


def test_rankings_are_looked_at(opened: Client, facts: Facts) -> None:
    body = {"user_id": facts.users[0], "candidates": facts.authors[:5], "now_ms": facts.now_ms}
    with opened() as (client, runtime):
        names = [("farm_score_probability_count", {"task": task}) for task in runtime.model.tasks]
        names += [("farm_history_events_count", {"domain": domain}) for domain in ("video", "live")]
        before = [value(name, **labels) for name, labels in names]
        deadline = time.monotonic() + 20.0
        while min(np.subtract([value(name, **labels) for name, labels in names], before)) < 2:
            assert client.post("/rank", json=body).status_code == 200
            assert time.monotonic() < deadline


def test_at_most_so_many_a_second() -> None:
    now = 100.0
    throttle = Throttle(20.0, lambda: now)
    looked = []
    for _ in range(1000):  # 10 s at 100 a second
        looked.append(throttle.is_due())
        now += 0.01
    assert sum(looked) == 200
    now += 60.0
    assert [throttle.is_due(), throttle.is_due()] == [True, False]
