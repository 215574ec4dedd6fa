"""The JSON of a ranking, made of arrays.

Letters: R rows of the answer, T tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import orjson

from feature_store.schema import MISSING
from service.contract import MAX_EXACT
from service.parse import GivenId


@dataclass(frozen=True)
class Rows:
    """What is answered of each author, best first."""

    author_ids: Sequence[GivenId]  # [R] as JSON carries them
    live_ids: Sequence[GivenId]  # [R]
    scores: np.ndarray  # [R] float32
    probabilities: np.ndarray  # [R, T] float32, calibrated


def render(
    request_id: str,
    model_version: str,
    tasks: Sequence[str],
    rows: Rows,
    degraded: Sequence[str],
    timing_ms: Mapping[str, float],
    debug: Mapping[str, object] | None = None,
    arm: str = "",
) -> bytes:
    """The answer to POST /rank (service.contract.RankAnswer); no `debug` in it when that is None, no empty `arm`."""
    answer = {
        "request_id": request_id,
        "model_version": model_version,
        **({"arm": arm} if arm else {}),
        "ranking": _ranking(tasks, rows),
        "degraded": degraded,
        "timing_ms": timing_ms,
    }
    if debug is not None:
        answer["debug"] = debug
    return orjson.dumps(answer)


def json_ids(ids: np.ndarray) -> list[GivenId]:
    """null for MISSING, a decimal string beyond 2^53.  ids [R] int64"""
    values: list[GivenId] = ids.tolist()
    if ((ids >= -MAX_EXACT) & (ids <= MAX_EXACT)).all():
        return values
    return [None if v == MISSING else v if -MAX_EXACT <= v <= MAX_EXACT else str(v) for v in ids.tolist()]


def _ranking(tasks: Sequence[str], rows: Rows) -> list[dict[str, object]]:
    columns = rows.author_ids, rows.live_ids, rows.scores.tolist(), rows.probabilities.tolist()
    return [
        {"author_id": author, "live_id": live, "score": score, "xtr": dict(zip(tasks, xtr))}  # noqa: B905 - slower
        for author, live, score, xtr in zip(*columns, strict=True)
    ]
