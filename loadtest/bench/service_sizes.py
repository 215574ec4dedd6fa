"""How much `farm bench service` measures."""

from __future__ import annotations

from dataclasses import dataclass

from loadtest.bench.service_stores import BACKENDS, Backend


@dataclass(frozen=True)
class Sizes:
    """Of a full run, about ten minutes."""

    users: int = 40_000  # of the stores that several parts use
    few_users: int = 1_000  # of the stores that are compared with
    many_users: int = 1_000_000  # these
    backends: tuple[Backend, ...] = BACKENDS  # of the parts that do not need both
    bodies: int = 20_000  # requests of a kind, before one comes again
    rounds: int = 5  # blocks of each kind
    seconds: float = 2.5  # of a block
    open_rounds: int = 3
    open_seconds: float = 7.0  # long because of its p99
    linear_rounds: int = 3
    linear_seconds: float = 1.5
    mixed_seconds: float = 20.0
    stage_rounds: int = 20
    memory_workers: int = 4
    memory_seconds: float = 6.0
    table_mb: int = 500
    counts: tuple[int, ...] = (50, 100, 200, 350, 500, 700, 1000)  # candidates


QUICK = Sizes(
    users=3_000,
    many_users=20_000,
    backends=("lmdb",),
    bodies=4_000,
    rounds=1,
    seconds=0.4,
    open_rounds=1,
    open_seconds=0.5,
    linear_rounds=1,
    linear_seconds=0.25,
    mixed_seconds=1.0,
    stage_rounds=3,
    memory_seconds=2.0,
    counts=(50, 200, 1000),
)
