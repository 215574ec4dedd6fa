"""The counters that LightGBM is given: causal, and what a plain loop counts."""

from __future__ import annotations

import numpy as np

from loadtest.bench.counters import PRIOR, counter_features, static_features
from model.datasets.prepared import Prepared


def test_a_users_past_clicks_are_those_known_at_the_request(prepared: Prepared) -> None:
    rows = prepared.rows("test")[::97]
    counters = counter_features(prepared, rows)
    video = prepared.events["video"]
    known_at, users = video.known_at(), video.user_rows()
    clicks = (video.columns["behaviours"][:] >> prepared.schema.behaviours.index("click")) & 1
    for place, row in enumerate(rows):
        past = (users == prepared.samples["user_row"][row]) & (known_at <= prepared.samples["request_time"][row])
        rate = (clicks[past].sum() + PRIOR * clicks.mean()) / (past.sum() + PRIOR)
        np.testing.assert_allclose(counters[place, :2], [np.log1p(past.sum()), rate])


def test_static_features_hold_no_id_and_no_history(prepared: Prepared) -> None:
    rows = prepared.rows("test")[:50]
    features = static_features(prepared, rows)
    # page, hour; activity group; tag, cluster
    assert features.shape == (50, 5)
    np.testing.assert_array_equal(features[:, 0], prepared.samples["page"][rows])
