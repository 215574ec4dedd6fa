"""A place for short faults: the session's small artifact over a store of few users."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from loadtest.bench.faults_lab import Ground
from loadtest.bench.faults_sizes import QUICK
from loadtest.bench.service_lab import open_lab
from loadtest.process import PATIENT

TINY = replace(
    QUICK,
    users=60,
    bodies=2_000,
    peak_s=0.5,
    fill_s=2.0,
    quiet_s=2.5,
    hold_s=0.4,
    calm_s=1.0,
    around_s=0.7,
    overload_s=1.5,
    window_s=0.5,
    batches=1,
    slow_s=0.4,
    slow_clients=40,
    deadline_ms=400,
)


@pytest.fixture(scope="package")
def ground(artifact: Path) -> Iterator[Ground]:
    """Services refuse nobody, because the machine may be busy with something else."""
    with open_lab(artifact, TINY.users, **PATIENT) as lab:
        yield Ground(lab, TINY)


@pytest.fixture(scope="module")
def strict_ground(artifact: Path) -> Iterator[Ground]:
    """Services as they come."""
    with open_lab(artifact, TINY.users) as lab:
        yield Ground(lab, TINY)
