"""Of `farm bench store`: `farm materialize` of simulated logs, into LMDB and into Redis."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from model.datasets.logs import prepare_logs
from model.datasets.prepared import Prepared
from model.datasets.simulator import simulate
from model.materialize import materialize


def simulated(folder: Path, users: int, days: int) -> Prepared:
    """PREPARED of simulated users."""
    made = simulate(folder / "logs", users=users, days=days)
    return prepare_logs(folder / "logs", folder / "prepared", made.last_day)


async def materialize_rates(data: Prepared, urls: list[str]) -> dict[str, Any]:
    """Users/s from the start until readers can read all of it, once for each URL: what is read back is counted in."""
    rates, made = [], []
    for url in urls:
        done = await materialize(data, url)
        rates.append(done.users / done.ready_s)
        made.append(done.verified)
    events = sum(len(columns) for columns in data.events.values())
    return {
        "users_per_s": rates,
        "median": median(rates),
        "users": len(data.user_ids()),
        "events": events,
        "verified": made,
    }
