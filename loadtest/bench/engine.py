"""`farm bench engine`: time of both towers, and the user once against the history tiled per candidate.

Letters: C candidates, U users, T tiles.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from feature_store.matrices import UserInputs
from model.artifact.engine import Engine, Provider
from model.figures import claim, report
from model.golden import random_candidates, random_users

TILED_CANDIDATES = 200
USER_ONCE_BOUND = 12.0  # times the candidates per second of the tiled history


def run(artifact: Path | None, threads: int, counts: list[int], device: Provider, quick: bool) -> dict[str, Any]:
    """Measure one artifact; without one, an untrained FARM of the default view (its speed is the same)."""
    with tempfile.TemporaryDirectory() as scratch:
        engine = Engine.load(artifact or _untrained(Path(scratch)), device, threads)
        repeats = 20 if quick else 200
        towers = [_towers(engine, count, repeats) for count in counts]
        tiled = _user_once_against_tiled(engine, max(3, repeats // 10))
    settings = {
        "artifact": engine.version,
        "arch": engine.manifest.arch,
        "threads": threads,
        "provider": engine.provider,
    }
    text = f"{TILED_CANDIDATES} candidates: candidates/s with the user once / with the history tiled per candidate"
    claims = [claim(text, tiled["ratio"], ">=", USER_ONCE_BOUND)]
    return report("engine", settings, {"towers": towers, "user_once_against_tiled": tiled}, claims)


def _untrained(folder: Path) -> Path:
    from feature_store.schema import default_schema
    from model.config import ModelConfig
    from model.datasets.logs import default_view
    from model.export import export_model
    from model.farm import Ranker
    from model.train import Run

    view = default_view()
    untrained = Run({"arch": "farm"}, view, default_schema(), "untrained", {})
    return export_model(Ranker(ModelConfig(), view), untrained, folder / "artifact").path


def _full_users(engine: Engine, users: int) -> UserInputs:
    length = engine.view.history_length
    return random_users(engine.view, [(length, length)] * users, seed=1)


def _towers(engine: Engine, count: int, repeats: int) -> dict[str, Any]:
    """Median ms of each tower for one user with full histories and `count` candidates."""
    users = _full_users(engine, 1)
    candidates = random_candidates(engine.view, (1, count), seed=1)
    state = engine.user_state(users)
    user_ms = _median_ms(lambda: engine.user_state(users), repeats)
    candidate_ms = _median_ms(lambda: engine.score_user(state, candidates[0]), repeats)
    rate = count / (user_ms + candidate_ms) * 1000
    return {"candidates": count, "user_tower_ms": user_ms, "candidate_tower_ms": candidate_ms, "candidates_per_s": rate}


def _user_once_against_tiled(engine: Engine, repeats: int) -> dict[str, Any]:
    """The same towers and answers: U = T = 1, K = 200 against U = T = 200, K = 1, in alternation."""
    users, tiled = _full_users(engine, 1), _tile(_full_users(engine, 1), TILED_CANDIDATES)
    candidates = random_candidates(engine.view, (1, TILED_CANDIDATES), seed=1)
    rows = np.arange(TILED_CANDIDATES)

    def once() -> np.ndarray:
        return engine.score_user(engine.user_state(users), candidates[0])

    def per_candidate() -> np.ndarray:
        return engine.score(engine.user_state(tiled), candidates.swapaxes(0, 1).copy(), rows)[:, 0]

    difference = float(np.abs(once() - per_candidate()).max())
    times = [(_time_ms(once), _time_ms(per_candidate)) for _ in range(repeats)]
    once_ms, tiled_ms = (float(np.median(column)) for column in zip(*times, strict=True))
    return {
        "candidates": TILED_CANDIDATES,
        "user_once_ms": once_ms,
        "tiled_ms": tiled_ms,
        "ratio": tiled_ms / once_ms,
        "greatest_difference": difference,
    }


def _tile(users: UserInputs, times: int) -> UserInputs:
    return UserInputs(**{name: np.repeat(array, times, axis=0) for name, array in users.feeds().items()})


def _median_ms(call: Callable[[], object], repeats: int) -> float:
    call()
    return float(np.median([_time_ms(call) for _ in range(repeats)]))


def _time_ms(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1000
