"""Inputs for golden cases and parity checks: random users and candidates with the edges in them.

Letters: U users, L events, T tiles, K candidates of a tile.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from feature_store.matrices import UserInputs
from feature_store.schema import MISSING
from feature_store.view import ModelView, Part, ViewField
from model.artifact.golden import GoldenCase
from model.farm import Ranker

EDGE_IDS = (MISSING, 0, -1, 1, 2**53 + 1, 2**63 - 1)
NOW_2022_MS = 1_651_680_000_123
NOW_2035_MS = 2_053_000_000_456


def golden_cases(model: Ranker) -> list[GoldenCase]:
    """Cases of several users, tiles, candidate counts and history lengths, with PyTorch's float32 probabilities."""
    slots = model.view.history_length
    lengths = [(0, 0), (1, 0), (0, 2), (2, 1), (slots - 1, slots), (slots, slots - 1), (slots, slots)]
    shapes = [(7, 7, 5), (2, 3, 64), (1, 1, 1), (1, 1, 199)]  # users, tiles, candidates
    return [_case(model, lengths[-u:] if u > 1 else lengths[-1:], t, k, i) for i, (u, t, k) in enumerate(shapes)]


@torch.inference_mode()
def _case(model: Ranker, lengths: Sequence[tuple[int, int]], tiles: int, size: int, seed: int) -> GoldenCase:
    users = random_users(model.view, lengths, seed)
    candidates = random_candidates(model.view, (tiles, size), seed)
    tile_user = np.arange(tiles, dtype=np.int64) % len(lengths)
    return GoldenCase(users, candidates, tile_user, torch_probabilities(model, users, candidates, tile_user))


@torch.inference_mode()
def torch_probabilities(model: Ranker, users: UserInputs, candidates: np.ndarray, tile_user: np.ndarray) -> np.ndarray:
    """What PyTorch gives: [T, K, tasks] float32."""
    state, _ = model.user_state(**{name: torch.from_numpy(values) for name, values in users.feeds().items()})
    logits = model.candidate_logits(state, torch.from_numpy(candidates), torch.from_numpy(tile_user))
    probabilities: np.ndarray = torch.sigmoid(logits).numpy()
    return probabilities


def random_users(
    view: ModelView, lengths: Sequence[tuple[int, int]], seed: int, now_ms: int = NOW_2035_MS
) -> UserInputs:
    """Users with histories of the given (video, live) lengths, one of 2022 among later ones.  Pads are MISSING."""
    rng = np.random.default_rng(seed)
    now = np.full(len(lengths), now_ms, np.int64)
    now[1::2] = NOW_2022_MS
    video_length, live_length = np.array(lengths, np.int64).reshape(-1, 2).T.copy()
    return UserInputs(
        video=_events(view, "video", video_length, now, rng),
        video_length=video_length,
        live=_events(view, "live", live_length, now, rng),
        live_length=live_length,
        user=_matrix(view, ("user", "context"), (len(lengths),), now, rng),
        now=now,
    )


def random_candidates(view: ModelView, shape: tuple[int, int], seed: int) -> np.ndarray:
    """Candidates [T, K, Fc] int64, some of their values missing or extreme."""
    return _matrix(view, ("candidate",), shape, np.zeros(shape[0], np.int64), np.random.default_rng(seed))


def _events(view: ModelView, part: Part, length: np.ndarray, now: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[U, L, F]"""
    shape = (len(length), view.history_length)
    matrix = _matrix(view, (part,), shape, now, rng)
    pads = np.arange(view.history_length) >= length[:, None]
    matrix[pads] = MISSING
    return matrix


def _matrix(
    view: ModelView, parts: tuple[Part, ...], shape: tuple[int, ...], now: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """The columns of the parts side by side: [*shape, F]"""
    columns = []
    for part in parts:
        fields = {f.source: f for f in view.fields(part) if f.source}
        columns += [_values(fields[name], shape, now, rng) for name in view.columns(part)]
    return np.stack(columns, axis=-1) if columns else np.empty((*shape, 0), np.int64)


def _values(field: ViewField, shape: tuple[int, ...], now: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if field.kind == "time":
        lag = rng.integers(-60_000, 2 * field.boundaries[-1], shape)
        values = now.reshape(-1, *([1] * (len(shape) - 1))) - lag
    elif field.kind == "number":
        values = rng.integers(0, 2 * field.boundaries[-1], shape)
    elif field.kind == "behaviours":
        values = rng.integers(0, 1 << field.rows, shape)
    else:
        values = rng.integers(0, 2**62, shape) if field.kind == "id" else rng.integers(0, field.rows, shape)
        values = np.where(rng.random(shape) < 0.1, rng.choice(EDGE_IDS, shape), values)
    return np.where(rng.random(shape) < 0.05, MISSING, values)
