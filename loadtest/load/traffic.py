"""Bodies of `POST /rank`: users by Zipf's law, distinct authors, candidate counts from a distribution."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import orjson

ZIPF_EXPONENT = 1.0


def rank_bodies(
    path: Path,
    users: np.ndarray,
    authors: np.ndarray,
    counts: Sequence[int],
    requests: int,
    top_k: int | None,
    now_ms: int | None,
    seed: int,
    step_ms: int = 0,
    exponent: float = ZIPF_EXPONENT,
) -> Path:
    """Write `requests` bodies as JSON lines.

    users [U], authors [A]: ids.  counts: each as likely as another; repeat one to weigh it.  now_ms: of the first
    request, None for the service's clock; step_ms later of each next one.  exponent: 0 draws users evenly.
    """
    rng = np.random.default_rng(seed)
    drawn_users, drawn_counts = _zipf(rng, users, requests, exponent), rng.choice(np.asarray(counts), requests)
    with path.open("wb") as lines:
        for number, (user, count) in enumerate(zip(drawn_users.tolist(), drawn_counts.tolist(), strict=True)):
            body = {"user_id": user, "candidates": rng.choice(authors, count, replace=False).tolist(), "top_k": top_k}
            if now_ms is not None:
                body["now_ms"] = now_ms + number * step_ms
            lines.write(orjson.dumps(body) + b"\n")
    return path


def _zipf(rng: np.random.Generator, users: np.ndarray, requests: int, exponent: float) -> np.ndarray:
    """[requests] user ids; who is popular is drawn too."""
    popularity = np.cumsum(np.arange(1, len(users) + 1) ** -exponent)
    ranks = np.searchsorted(popularity, rng.random(requests) * popularity[-1], side="right")
    return np.asarray(rng.permutation(users)[ranks])
