"""Batches of samples, gathered from flat columns by index arithmetic.

Letters: B samples, L events, F fields.  A batch is what the towers read with U = B users and one candidate each.
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

    users: UserInputs  # U = B
    candidates: np.ndarray  # [B, Fc] int64
    labels: np.ndarray  # [B, tasks] float32, 0 where not known
    known: np.ndarray  # [B, tasks] bool
    user_rows: np.ndarray  # [B] int64


def gather(data: Prepared, rows: np.ndarray, trim: bool = False) -> Batch:
    """The samples `rows` [B], each with the newest L events of both domains that were known at its request.

    trim: no more slots than the longest history of the batch has events (at least one); pads change no result.
    """
    view, samples = data.view, data.samples
    user_rows = samples["user_row"][rows]
    histories = {}
    for domain in DOMAINS:
        ends, columns = samples[f"{domain}_end"][rows], view.columns(domain)
        histories[domain] = _histories(data.events[domain], ends, user_rows, view.history_length, columns, trim)
    user = [_take(data.users, view.columns("user"), user_rows), _take(samples, view.columns("context"), rows)]
    users = UserInputs(
        video=histories["video"][0],
        video_length=histories["video"][1],
        live=histories["live"][0],
        live_length=histories["live"][1],
        user=np.concatenate(user, axis=1),  # [B, Fu + Fx]
        now=np.asarray(samples["request_time"][rows]),
    )
    labels = samples["labels"][rows]
    known = labels >= 0
    candidates = _take(samples, view.columns("candidate"), rows)
    return Batch(users, candidates, np.where(known, labels, 0).astype(np.float32), known, user_rows)


def batches(data: Prepared, rows: np.ndarray, size: int) -> Iterator[Batch]:
    """Batches of `size` over `rows`, in order.  The last may be smaller."""
    for start in range(0, len(rows), size):
        yield gather(data, rows[start : start + size], trim=True)


def shuffled_batches(data: Prepared, rows: np.ndarray, size: int, rng: np.random.Generator) -> Iterator[Batch]:
    """Batches of `size` over `rows` in random order, of samples with histories of like length.

    Histories are short for most users: batches of like length, trimmed, are much faster.  Sorting is within
    windows of random samples, so what meets in a batch differs from epoch to epoch.
    """
    order = rng.permutation(rows)
    window = size * WINDOW_BATCHES
    parts = [_by_length(data, order[start : start + window]) for start in range(0, len(order), window)]
    order = np.concatenate(parts)
    starts = rng.permutation(np.arange(0, len(order), size))
    for start in starts:
        yield gather(data, order[start : start + size], trim=True)


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
