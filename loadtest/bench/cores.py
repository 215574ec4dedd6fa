"""Which cores a bench gives to what."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Cores:
    """The service has one, the load generator and the store's server the other; on a machine with one, all share it."""

    service: int
    others: int

    @classmethod
    def of_this_process(cls) -> Cores:
        allowed = sorted(os.sched_getaffinity(0))
        return cls(allowed[0], allowed[1] if len(allowed) > 1 else allowed[0])


@contextmanager
def pinned(cpus: set[int]) -> Iterator[None]:
    """This thread, and the processes that it starts meanwhile, on these cores."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)
