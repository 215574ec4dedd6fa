"""Batches of samples, gathered from flat columns by index arithmetic.

Samples of one user and time are one request's slate: they share a history, which a batch holds once.
Letters: B samples, U requests, L events, F fields.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from feature_store.matrices import UserInputs
from feature_store.schema import DOMAINS, MISSING, widen
from model.datasets.prepared import Columns, Events, Prepared

WINDOW_BATCHES = 16  # batches of random samples that are sorted together


@dataclass(frozen=True)
class Batch:
    """Samples as the towers read them, with their labels."""

    users: UserInputs  # the U requests
    request: np.ndarray  # [B] int64, ascending: the request that each sample is of
    candidates: np.ndarray  # [B, Fc] int64
    labels: np.ndarray  # [B, tasks] float32, 0 where not known
    known: np.ndarray  # [B, tasks] bool
    user_rows: np.ndarray  # [U] int64


def gather(data: Prepared, rows: np.ndarray, trim: bool = False) -> Batch:
    """The samples `rows` [B], their requests with the newest L events of both domains that were known at each.

    Neighbours in `rows` of one user, time and context share a request.
    trim: no more slots than the longest history of the batch has events (at least one); pads change no result.
    """
    view, samples = data.view, data.samples
    first = _first_of_request(data, rows)
    request, requests = np.cumsum(first) - 1, rows[first]  # [B], [U]
    user_rows = samples["user_row"][requests]
    histories = {}
    for domain in DOMAINS:
        ends, columns = samples[f"{domain}_end"][requests], view.columns(domain)
        histories[domain] = _histories(data.events[domain], ends, user_rows, view.history_length, columns, trim)
    user = [_take(data.users, view.columns("user"), user_rows), _take(samples, view.columns("context"), requests)]
    users = UserInputs(
        video=histories["video"][0],
        video_length=histories["video"][1],
        live=histories["live"][0],
        live_length=histories["live"][1],
        user=np.concatenate(user, axis=1),  # [U, Fu + Fx]
        now=np.asarray(samples["request_time"][requests]),
    )
    labels = samples["labels"][rows]
    known = labels >= 0
    candidates = _take(samples, view.columns("candidate"), rows)
    return Batch(users, request, candidates, np.where(known, labels, 0).astype(np.float32), known, user_rows)


def _first_of_request(data: Prepared, rows: np.ndarray) -> np.ndarray:
    """Which of `rows` begin a request, being of another user, time or context than the one before.  [B] bool"""
    first = np.zeros(len(rows), bool)
    first[:1] = True
    for name in ("user_row", "request_time", *data.view.columns("context")):
        values = data.samples[name][rows]
        first[1:] |= values[1:] != values[:-1]
    return first


def batches(data: Prepared, rows: np.ndarray, size: int) -> Iterator[Batch]:
    """Batches of `size` over `rows`, in order.  The last may be smaller."""
    for start in range(0, len(rows), size):
        yield gather(data, rows[start : start + size], trim=True)


def shuffled_batches(
    data: Prepared,
    rows: np.ndarray,
    size: int,
    rng: np.random.Generator,
    rank: int = 0,
    ranks: int = 1,
    skip: int = 0,
) -> Iterator[Batch]:
    """Batches of `size` over `rows` (ascending) in random order, of requests with histories of like length.

    The samples of a request stay together, so that its user is computed once.  Histories are short for most users:
    batches of like length, trimmed, are much faster.  Sorting is within windows of random requests, so what meets in a
    batch differs from epoch to epoch.
    Of `ranks` processes with like generators, each takes every `ranks`-th batch; `skip`: of its batches, those done.
    """
    order = _shuffled_requests(data, rows, rng)
    window = size * WINDOW_BATCHES
    parts = [_by_length(data, order[start : start + window]) for start in range(0, len(order), window)]
    order = np.concatenate(parts) if parts else order
    starts = rng.permutation(np.arange(0, len(order), size))
    for start in starts[rank::ranks][skip:]:
        yield gather(data, order[start : start + size], trim=True)


def _shuffled_requests(data: Prepared, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`rows` with their requests in random order, each request's samples together.  [B]"""
    request = np.cumsum(_first_of_request(data, rows)) - 1  # [B]
    place = rng.permutation(request[-1] + 1 if len(request) else 0)  # [U]
    return rows[np.argsort(place[request], kind="stable")]


def _by_length(data: Prepared, rows: np.ndarray) -> np.ndarray:
    """Rows sorted by their greatest history length, ties as they come."""
    user_rows = data.samples["user_row"][rows]
    longest = np.zeros(len(rows), np.int64)
    for domain in DOMAINS:
        events = data.samples[f"{domain}_end"][rows] - data.events[domain].offsets[user_rows]
        longest = np.maximum(longest, np.minimum(events, data.view.history_length))
    return rows[np.argsort(longest, kind="stable")]


def _histories(
    events: Events, ends: np.ndarray, user_rows: np.ndarray, length: int, columns: tuple[str, ...], trim: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The newest `length` events before each end.  -> [B, L, F] int64, [B] int64"""
    starts = np.maximum(events.offsets[user_rows], ends - length)  # [B]
    lengths = ends - starts  # [B]
    slots = np.arange(max(1, int(lengths.max(initial=0))) if trim else length)
    valid = slots < lengths[:, None]  # [B, L]
    index = np.where(valid, starts[:, None] + slots, 0)  # [B, L]
    matrix = np.full((*valid.shape, len(columns)), MISSING, np.int64)  # [B, L, F]
    if len(events):
        for position, column in enumerate(columns):
            np.copyto(matrix[..., position], widen(events.columns[column][index]), where=valid)
    return matrix, lengths.astype(np.int64)


def _take(table: Columns, columns: tuple[str, ...], rows: np.ndarray) -> np.ndarray:
    """[B, F] int64"""
    if not columns:
        return np.empty((len(rows), 0), np.int64)
    return np.stack([widen(table[column][rows]) for column in columns], axis=1)
