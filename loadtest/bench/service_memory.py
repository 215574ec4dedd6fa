"""Of `farm bench service`: workers share the embedding tables."""

from __future__ import annotations

from typing import Any

from loadtest.bench.memory import run_memory
from loadtest.bench.service_lab import Lab
from loadtest.bench.service_sizes import Sizes


def memory(lab: Lab, sizes: Sizes) -> dict[str, Any]:
    """Over a model of its own, with a large table."""
    return run_memory(sizes.memory_workers, sizes.table_mb, sizes.memory_seconds)


def memory_claims(found: dict[str, Any]) -> list[dict[str, Any]]:
    claims: list[dict[str, Any]] = found["claims"]
    return claims
