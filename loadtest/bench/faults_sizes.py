"""How much `farm bench faults` does."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Of a full run, about a quarter of an hour."""

    users: int = 2_000
    bodies: int = 20_000  # requests of a kind, before one comes again
    peak_rounds: int = 3
    peak_s: float = 3.0  # of a round of what saturates a service
    fill_s: float = 8.0  # of load before the first fault of the store: users and authors are seen
    quiet_s: float = 6.0  # of load between faults
    hold_s: float = 2.0  # of a fault that lasts
    calm_s: float = 20.0  # at 70 %, to compare an overload with
    overload_s: float = 60.0
    reloads: int = 10
    window_s: float = 4.0  # around a reload, and as long without one after it
    activations: int = 5  # with four workers
    kills: int = 3
    around_s: float = 2.0  # of load before and after a restart or a kill
    batches: int = 6  # of 64 requests, one of them poisoned
    slow_s: float = 15.0  # of normal load with slow clients, and without
    slow_clients: int = 500
    deadline_ms: int = 100  # of requests while the store fails


QUICK = Sizes(
    users=300,
    bodies=3_000,
    peak_rounds=1,
    peak_s=1.0,
    fill_s=3.0,
    quiet_s=3.0,
    hold_s=0.5,
    calm_s=2.0,
    overload_s=3.0,
    reloads=2,
    window_s=2.0,
    activations=1,
    kills=1,
    batches=2,
    slow_s=1.5,
    slow_clients=100,
)
