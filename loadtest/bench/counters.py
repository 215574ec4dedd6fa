"""What a gradient-boosted model is given: static attributes, and causal counters of the past.

Letters: N samples, E events.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from feature_store.schema import DOMAINS, MISSING, widen
from model.datasets.prepared import Events, Prepared

PRIOR = 5.0  # views at the mean rate that every counter starts with
_HOUR_MS = 3_600_000
_IDS = ("user_id", "author_id", "live_id")


def static_features(data: Prepared, rows: np.ndarray) -> np.ndarray:
    """Page, local hour, the user's and the author's attributes, no ids: [N, F] float64, nan where missing."""
    samples, view = data.samples, data.view
    hour = (samples["request_time"][rows] + view.utc_offset_s * 1000) // _HOUR_MS % 24
    columns = [widen(samples["page"][rows]), hour]
    user_rows = samples["user_row"][rows]
    columns += [widen(data.users[name][user_rows]) for name in view.columns("user") if name not in _IDS]
    columns += [widen(samples[name][rows]) for name in view.columns("candidate") if name not in _IDS]
    features = np.stack(columns, axis=1)
    return np.where(features == MISSING, np.nan, features)


def counter_features(data: Prepared, rows: np.ndarray) -> np.ndarray:
    """Past click and long-view rates and view counts per user, live, author, user x tag, user x page; over the events
    of each domain whose outcome was known at the request.  [N, F] float64"""
    columns = []
    for domain in DOMAINS:
        for event_key, sample_key in _keys(data, data.events[domain], rows, domain):
            columns += _past_rates(data, data.events[domain], event_key, sample_key, rows)
    return np.stack(columns, axis=1)


def _keys(data: Prepared, events: Events, rows: np.ndarray, domain: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of keys, of the events [E] and of the samples [N], as comparable integers."""
    user, sample_user = events.user_rows(), np.asarray(data.samples["user_row"][rows])
    column = {
        name: (widen(events.columns[name][:]), widen(data.samples[name][rows])) for name in ("author_id", "tag", "page")
    }
    yield user, sample_user
    yield column["author_id"]
    yield _pair(user, column["tag"][0]), _pair(sample_user, column["tag"][1])
    if domain == "live":  # the page of a video says nothing of the page of a live
        yield _pair(user, column["page"][0]), _pair(sample_user, column["page"][1])


def _pair(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Two small integers as one."""
    return a * 2**20 + np.where(b == MISSING, 2**20 - 1, b)


def _past_rates(
    data: Prepared, events: Events, event_key: np.ndarray, sample_key: np.ndarray, rows: np.ndarray
) -> list[np.ndarray]:
    """Smoothed rates of each counted behaviour, and log1p of the number of views, known at each sample's request."""
    _, dense = np.unique(np.concatenate([event_key, sample_key]), return_inverse=True)
    event_dense, sample_dense = dense[: len(event_key)], dense[len(event_key) :]
    known_at, now = events.known_at(), np.asarray(data.samples["request_time"][rows])
    origin = min(known_at.min(), now.min())
    span = max(known_at.max(), now.max()) - origin + 2
    order = np.lexsort((known_at, event_dense))
    folded = (event_dense * span + known_at - origin)[order]
    end = np.searchsorted(folded, sample_dense * span + now - origin, side="right")
    start = np.searchsorted(folded, sample_dense * span, side="left")
    views = (end - start).astype(float)
    columns = [np.log1p(views)]
    for name in ("click", "long_view"):
        bit = data.schema.behaviours.index(name)
        done = (events.columns["behaviours"][:] >> bit) & 1
        total = np.concatenate([[0], np.cumsum(done[order])])
        columns.append((total[end] - total[start] + PRIOR * done.mean()) / (views + PRIOR))
    return columns
