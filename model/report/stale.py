"""Test data as a service knows it that hears no news: histories and authors as they were some time before each request.

Letters: N test samples, S samples of all splits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from feature_store.schema import DOMAINS
from feature_store.view import REQUEST_CANDIDATE
from model.datasets.prepared import Prepared, history_ends

HISTORY_MIN = (1, 5, 30)  # a last good history lives 10 min by default
AUTHORS_MIN = 60  # the default age at which an author is no longer used
_MINUTE_MS = 60_000

STALE_HISTORIES = {minutes: f"history of {minutes} min before" for minutes in HISTORY_MIN}
STALE_AUTHORS = f"authors of {AUTHORS_MIN} min before"

EXPLAINED = {
    **{name: f"histories as they were {minutes} min before each request" for minutes, name in STALE_HISTORIES.items()},
    STALE_AUTHORS: f"attributes as last logged at least {AUTHORS_MIN} min before; an author without is unknown",
}
NAMES = tuple(EXPLAINED)


def stale_conditions(data: Prepared, rows: np.ndarray) -> Iterator[tuple[str, Prepared]]:
    """Each of NAMES, and the data in which the samples `rows` [N] are as it says."""
    for minutes, name in STALE_HISTORIES.items():
        yield name, stale_histories(data, rows, minutes)
    yield STALE_AUTHORS, stale_authors(data, rows, AUTHORS_MIN)


def stale_histories(data: Prepared, rows: np.ndarray, minutes: int) -> Prepared:
    """The data, the histories of the samples `rows` [N] as they could be read `minutes` before each request."""
    samples = dict(data.samples)
    times = np.asarray(samples["request_time"][rows]) - minutes * _MINUTE_MS - data.view.history_delay_s * 1000
    for domain in DOMAINS:
        ends = np.array(samples[f"{domain}_end"])
        ends[rows] = history_ends(data.events[domain], samples["user_row"][rows], times)
        samples[f"{domain}_end"] = ends
    return replace(data, samples=samples)


def stale_authors(data: Prepared, rows: np.ndarray, minutes: int) -> Prepared:
    """The data, the attributes of the authors of the samples `rows` [N] as any sample last had them at least `minutes`
    before the request.  The ids are the request's; without such a sample the attributes are missing."""
    samples = dict(data.samples)
    sources = _sources(data, rows, minutes)
    for name in data.view.columns("candidate"):
        if name in REQUEST_CANDIDATE:
            continue
        column = np.array(samples[name])
        column[rows] = np.where(sources >= 0, column[sources], np.iinfo(column.dtype).min)
        samples[name] = column
    return replace(data, samples=samples)


def _sources(data: Prepared, rows: np.ndarray, minutes: int) -> np.ndarray:
    """For each of `rows` the newest sample of its author that is old enough, -1 without one.  [N]"""
    times, authors = np.asarray(data.samples["request_time"]), np.asarray(data.samples["author_id"])
    _, number = np.unique(authors, return_inverse=True)  # [S]
    low = int(times.min(initial=0)) - minutes * _MINUTE_MS
    span = int(times.max(initial=0)) - low + 1
    order = np.lexsort((times, number))
    keys = number[order] * span + (times[order] - low)  # [S]: author and time folded into one integer, ascending
    latest = number[rows] * span + (times[rows] - minutes * _MINUTE_MS - low)  # [N]
    ends = np.searchsorted(keys, latest, side="right")
    starts = np.searchsorted(keys, number[rows] * span, side="left")
    return np.where(ends > starts, order[np.maximum(ends - 1, 0)], -1)
