"""Of `farm bench service`: small requests among large ones."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from loadtest.bench.service_lab import Lab, summary
from loadtest.bench.service_sizes import Sizes
from loadtest.bench.service_stores import Backend
from loadtest.load.figures import Latencies
from model.figures import claim

CLIENTS = 16
SMALL = 50
COUNTS = (SMALL, 200, 500, 2000)

_BACKEND: Backend = "lmdb"


def mixed(lab: Lab, sizes: Sizes) -> dict[str, Any]:
    """Latencies by size, and how long small requests waited against how long batches took.

    Both are of the answers' timing_ms: `queue`, from when a request was given to the engine's threads until one took
    it; and the time of the batch in which a small request was.
    """
    bodies = lab.bodies(COUNTS, sizes.bodies)
    block = lab.service(_BACKEND).block(bodies, CLIENTS, sizes.mixed_seconds, keep_every=1, by_candidates=True)
    sent = [len(json.loads(line)["candidates"]) for line in bodies.path.read_bytes().splitlines()]
    timings = [json.loads(answer.text)["timing_ms"] for answer in block.load.answers if sent[answer.body] == SMALL]
    waits = Latencies.of([timing["queue"] for timing in timings])
    batches = Latencies.of([timing["user_tower"] + timing["candidate_tower"] for timing in timings])
    return {
        **summary([block]),
        "by_candidates": {count: asdict(found) for count, found in block.load.by_candidates.items()},
        "small_queue": asdict(waits),
        "batch": asdict(batches),
    }


def mixed_claims(found: dict[str, Any]) -> list[dict[str, Any]]:
    text = (
        f"{CLIENTS} clients of {SMALL} to {max(COUNTS)} candidates: wait of a request of {SMALL}, p99 / longest batch"
    )
    return [claim(text, found["small_queue"]["p99_ms"] / found["batch"]["max_ms"], "<=", 1.0)]
