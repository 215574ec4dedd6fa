"""`farm bench engine`: the towers against the rate of their core, and against other ways to compute the same.

With one thread on the CPU, times are CPU time of that thread: what else runs on the machine then changes less.
Letters: U users, T tiles, K candidates of a tile.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from feature_store.matrices import UserInputs
from feature_store.view import ModelView
from loadtest.bench import sgemm
from loadtest.bench.flops import flops
from model.artifact.engine import Engine, Piece, Provider
from model.artifact.manifest import CANDIDATE_TOWER, USER_TOWER
from model.figures import claim, report
from model.golden import random_candidates, random_users

COMPARED_CANDIDATES = 200
RATE_CANDIDATES = 500
TIMED_CALLS = 3  # of each side in a round, after one that is not timed
BATCH = (8, 32)  # tiles, candidates of each
# Bounds of the claims
FRACTION = 0.70  # of the sgemm rate
REWRITTEN = 1.3  # times the candidates/s of the plain export
KEPT_STATE_MS = 0.15
INT8 = 1.6  # times the candidates/s of fp32
USER_ONCE = 12.0  # times the candidates/s of the tiled history


@dataclass(frozen=True)
class Bench:
    """How to time: rounds in which every side has its turn, and a clock in seconds."""

    rounds: int
    clock: Callable[[], float]

    def medians_ms(self, calls: Mapping[str, Callable[[], object]]) -> dict[str, float]:
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(self.rounds):
            for name, call in calls.items():
                call()
                times[name] += [self._ms(call) for _ in range(TIMED_CALLS)]
        return {name: float(np.median(values)) for name, values in times.items()}

    def _ms(self, call: Callable[[], object]) -> float:
        start = self.clock()
        call()
        return (self.clock() - start) * 1000


def run(artifact: Path | None, threads: int, counts: list[int], device: Provider, quick: bool) -> dict[str, Any]:
    """Measure one artifact; without one, an untrained FARM of the default view (its speed is the same)."""
    clock = time.thread_time if threads == 1 and device == "cpu" else time.perf_counter
    bench = Bench(6 if quick else 60, clock)

    def load(path: Path) -> Engine:
        return Engine.load(path, device, threads)

    with tempfile.TemporaryDirectory() as scratch:
        plain = load(_untrained(artifact, Path(scratch) / "plain", rewrite=False))
        engine = load(_untrained(None, Path(scratch) / "rewritten", rewrite=True) if artifact is None else artifact)
        results = {
            "towers": _towers(bench, engine, sorted({*counts, RATE_CANDIDATES}), threads),
            "kept_state_one_candidate_ms": _kept_state(bench, engine),
            "batch": _batch(bench, engine),
            "rewritten_against_plain": _against(bench, {"plain": plain, "rewritten": engine}),
            "batch_of_new_users": _batch_of_new_users(bench, engine),
            "user_once_against_tiled": _user_once_against_tiled(bench, engine),
        }
        if device == "cpu":
            int8 = load(_converted(engine.artifact.path, Path(scratch) / "int8"))
            results["int8_against_fp32"] = _against(bench, {"fp32": engine, "int8": int8})
    settings = {
        "artifact": engine.version,
        "arch": engine.manifest.arch,
        "threads": threads,
        "provider": engine.provider,
        "clock": "CPU time of the thread" if clock is time.thread_time else "wall time",
    }
    return report("engine", settings, results, _claims(results))


def _claims(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    rate = next(row for row in results["towers"] if row["candidates"] == RATE_CANDIDATES)
    text = f"{COMPARED_CANDIDATES} candidates: candidates/s"
    found = [
        claim(
            f"{RATE_CANDIDATES} candidates: rate of the candidate tower's products / sgemm rate",
            rate["fraction"],
            ">=",
            FRACTION,
        ),
        claim(f"{text} rewritten / plain export", results["rewritten_against_plain"]["ratio"], ">=", REWRITTEN),
        claim("1 candidate, user state kept, ms", results["kept_state_one_candidate_ms"], "<=", KEPT_STATE_MS),
    ]
    if "int8_against_fp32" in results:
        found.append(claim(f"{text} int8 / fp32", results["int8_against_fp32"]["ratio"], ">=", INT8))
    tiled = results["user_once_against_tiled"]["ratio"]
    return [*found, claim(f"{text} with the user once / with the history tiled", tiled, ">=", USER_ONCE)]


def _untrained(artifact: Path | None, folder: Path, rewrite: bool) -> Path:
    """An untrained model of an artifact's settings and view, or the default ones, exported.  Its speed is the same."""
    from feature_store.schema import default_schema
    from model.artifact.manifest import Artifact
    from model.config import ModelConfig, split_settings
    from model.datasets.logs import default_view
    from model.export import export_model
    from model.farm import Ranker
    from model.train import Run

    config, view = ModelConfig(), default_view()
    if artifact is not None:
        manifest = Artifact.open(artifact).manifest
        config, view = split_settings({"arch": manifest.arch} | manifest.settings)[0], manifest.view
    run = Run({"arch": config.arch}, view, default_schema(), "untrained", {})
    return export_model(Ranker(config, view), run, folder, rewrite=rewrite).path


def _converted(artifact: Path, out: Path) -> Path:
    from model.export.precision import convert

    return convert(artifact, out, "int8").path


def _towers(bench: Bench, engine: Engine, counts: list[int], threads: int) -> list[dict[str, Any]]:
    """Median ms of each tower for one user with full histories, in alternation with the core's own rate."""
    users = _full_users(engine.view, 1)
    state, tile_user = engine.user_state(users), np.zeros(1, np.int64)
    candidates = {count: random_candidates(engine.view, (1, count), seed=1) for count in counts}
    references = sgemm.products(threads)
    calls: dict[str, Callable[[], object]] = {"user": partial(engine.user_state, users), **references}
    calls |= {str(count): partial(engine.score, state, candidates[count], tile_user) for count in counts}
    ms = bench.medians_ms(calls)
    rates = {name: sgemm.FLOPS / ms[name] / 1e6 for name in references}
    rows = []
    for count in counts:
        reads = {**state, "candidates": candidates[count], "tile_user": tile_user}
        mflop = flops(engine.artifact.path / CANDIDATE_TOWER, reads) / 1e6
        rows.append(
            {
                "candidates": count,
                "user_tower_ms": ms["user"],
                "candidate_tower_ms": ms[str(count)],
                "candidates_per_s": count / (ms["user"] + ms[str(count)]) * 1000,
                "candidate_tower_mflop": mflop,
                "gflop_per_s": mflop / ms[str(count)],
                "sgemm_gflop_per_s": rates,
                "fraction": mflop / ms[str(count)] / max(rates.values()),
            }
        )
    return rows


def _kept_state(bench: Bench, engine: Engine) -> float:
    """Median ms of one candidate of a user whose state is at hand."""
    state = engine.user_state(_full_users(engine.view, 1))
    candidate = random_candidates(engine.view, (1, 1), seed=1)[0]
    return bench.medians_ms({"kept": lambda: engine.score_user(state, candidate)})["kept"]


def _batch(bench: Bench, engine: Engine) -> dict[str, Any]:
    """The candidate tower over tiles of several users."""
    tiles, size = BATCH
    state = engine.user_state(_full_users(engine.view, tiles))
    candidates, tile_user = random_candidates(engine.view, BATCH, seed=1), np.arange(tiles)
    ms = bench.medians_ms({"batch": lambda: engine.score(state, candidates, tile_user)})["batch"]
    return {"tiles": tiles, "candidates_of_a_tile": size, "candidate_tower_ms": ms}


def _batch_of_new_users(bench: Bench, engine: Engine) -> dict[str, Any]:
    """Users without a kept state and 200 candidates of each: all at once, and one after the other, in alternation."""
    users = _full_users(engine.view, BATCH[0]).feeds()
    pieces = [
        Piece(
            UserInputs(**{name: array[row : row + 1] for name, array in users.items()}),
            state=None,
            candidates=random_candidates(engine.view, (1, COMPARED_CANDIDATES), seed=row)[0],
        )
        for row in range(BATCH[0])
    ]
    ms = bench.medians_ms(
        {
            "at_once_ms": partial(engine.run, pieces),
            "one_by_one_ms": lambda: [engine.run([piece]) for piece in pieces],
        }
    )
    found = {"users": len(pieces), "candidates_of_a_user": COMPARED_CANDIDATES}
    return {**found, **ms, "ratio": ms["one_by_one_ms"] / ms["at_once_ms"]}


def _against(bench: Bench, engines: Mapping[str, Engine]) -> dict[str, Any]:
    """Both towers for one user and 200 candidates with two engines, in alternation.

    ratio: time of the first / time of the second.
    """
    users = {name: _full_users(engine.view, 1) for name, engine in engines.items()}
    states = {name: engine.user_state(users[name]) for name, engine in engines.items()}
    calls: dict[str, Callable[[], object]] = {}
    found: dict[str, Any] = {"candidates": COMPARED_CANDIDATES}
    for name, engine in engines.items():
        candidates = random_candidates(engine.view, (1, COMPARED_CANDIDATES), seed=1)[0]
        calls[f"{name}_user_tower_ms"] = partial(engine.user_state, users[name])
        calls[f"{name}_candidate_tower_ms"] = partial(engine.score_user, states[name], candidates)
        if engine.manifest.precision == "fp32":
            reads = {**states[name], "candidates": candidates[None], "tile_user": np.zeros(1, np.int64)}
            found[f"{name}_user_tower_mflop"] = flops(engine.artifact.path / USER_TOWER, users[name].feeds()) / 1e6
            found[f"{name}_candidate_tower_mflop"] = flops(engine.artifact.path / CANDIDATE_TOWER, reads) / 1e6
    ms = bench.medians_ms(calls)
    first, second = (ms[f"{name}_user_tower_ms"] + ms[f"{name}_candidate_tower_ms"] for name in engines)
    return {**found, **ms, "ratio": first / second}


def _user_once_against_tiled(bench: Bench, engine: Engine) -> dict[str, Any]:
    """The same towers and answers: U = T = 1, K = 200 against U = T = 200, K = 1, in alternation."""
    users = _full_users(engine.view, 1)
    tiled = UserInputs(**{name: np.repeat(array, COMPARED_CANDIDATES, axis=0) for name, array in users.feeds().items()})
    candidates = random_candidates(engine.view, (1, COMPARED_CANDIDATES), seed=1)
    rows = np.arange(COMPARED_CANDIDATES)

    def once() -> np.ndarray:
        return engine.score_user(engine.user_state(users), candidates[0])

    def per_candidate() -> np.ndarray:
        return engine.score(engine.user_state(tiled), candidates.swapaxes(0, 1).copy(), rows)[:, 0]

    difference = float(np.abs(once() - per_candidate()).max())
    ms = replace(bench, rounds=max(2, bench.rounds // 5)).medians_ms({"once": once, "tiled": per_candidate})
    return {
        "candidates": COMPARED_CANDIDATES,
        "user_once_ms": ms["once"],
        "tiled_ms": ms["tiled"],
        "ratio": ms["tiled"] / ms["once"],
        "greatest_difference": difference,
    }


def _full_users(view: ModelView, users: int) -> UserInputs:
    length = view.history_length
    return random_users(view, [(length, length)] * users, seed=1)
