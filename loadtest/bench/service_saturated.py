"""Of `farm bench service`: a saturated core, and what its time goes to."""

from __future__ import annotations

from functools import partial
from typing import Any

from loadtest.bench.cores import pinned
from loadtest.bench.memory import pss_bytes
from loadtest.bench.service_lab import Block, Bodies, Lab, interleave, summary
from loadtest.bench.service_sizes import Sizes
from loadtest.bench.service_stores import BACKENDS, Backend
from loadtest.bench.stages import stage_costs
from model.figures import claim

CLIENTS = 8
CANDIDATES = 200

_REST_BOUND_MS: dict[Backend, float] = {"redis": 0.6, "lmdb": 0.45}
_STAGE_BODIES = 256
_SPLIT = {
    "store": ("store",),
    "matrices": ("inputs", "digest"),
    "formula": ("calibrate", "formula", "order"),
    "json": ("parse", "render"),
    "metrics": ("metrics",),
}
"""What is told of a request, by the stages of loadtest.bench.stages."""


def saturated(lab: Lab, sizes: Sizes) -> dict[str, Any]:
    """By backend; every request is of another state of a user, so the user tower runs for each."""
    bodies = lab.bodies([CANDIDATES], sizes.bodies)
    ways = {backend: partial(lab.service(backend).block, bodies, CLIENTS) for backend in BACKENDS}
    blocks = interleave(ways, sizes.rounds, sizes.seconds)
    return {backend: _figures(lab, backend, blocks[backend], bodies, sizes) for backend in BACKENDS}


def _figures(lab: Lab, backend: Backend, blocks: list[Block], bodies: Bodies, sizes: Sizes) -> dict[str, Any]:
    found = summary(blocks)
    lines = bodies.path.read_bytes().splitlines()[:_STAGE_BODIES]
    with pinned({lab.cores.service}):
        stages = stage_costs(lab.artifact, lab.store(backend), lines, sizes.stage_rounds)
    return {
        **found,
        "workers_pss_mb": pss_bytes(lab.service(backend).pids()) / 1e6,
        "candidates_per_s": CANDIDATES * found["per_second"],
        "split_cpu_ms": split(found, stages),
        "stages_cpu_ms": stages,
    }


def split(found: dict[str, Any], stages: dict[str, float]) -> dict[str, float]:
    """CPU of a request [ms], of which the towers and the sum are measured under load, the stages alone; HTTP is what is
    left, with the hand-over to the engine's threads."""
    parts = {part: sum(stages[stage] for stage in names) for part, names in _SPLIT.items()}
    towers = {"user_tower": found["user_cpu_ms"], "candidate_tower": found["candidate_cpu_ms"]}
    return {"http": found["rest_cpu_ms"] - sum(parts.values()), **parts, **towers}


def saturated_claims(found: dict[str, Any]) -> list[dict[str, Any]]:
    text = f"CPU of all that is no tower, ms for {CANDIDATES} candidates"
    return [claim(f"{name}: {text}", found[name]["rest_cpu_ms"], "<=", _REST_BOUND_MS[name]) for name in BACKENDS]
