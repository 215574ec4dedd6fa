"""How much `farm bench metrics` measures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Of a full run, about eight minutes."""

    users: int = 3_000
    bodies: int = 20_000  # requests of a kind, before one comes again
    candidates: int = 200
    clients: tuple[int, ...] = (1, 8)  # of closed loops: batches of one request, and of several
    starts: int = 5  # of both services: how their memory lies makes one process faster than its twin
    rounds: int = 6  # pairs of blocks of each start, with metrics and logs and without
    seconds: float = 2.0  # of a block
    exact_seconds: float = 10.0
    kills: int = 4  # of a worker
    around_s: float = 1.0  # of load before and after each


QUICK = Sizes(users=500, bodies=3_000, clients=(8,), starts=1, rounds=3, seconds=0.5, exact_seconds=2.0, kills=1)
