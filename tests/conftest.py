"""What several rooms test with: a small simulation, prepared, a FARM trained on it, exported, materialized."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from model.datasets.logs import prepare_logs
from model.datasets.prepared import Prepared
from model.datasets.simulator import simulate
from model.export import export_run
from model.materialize import materialize
from model.train import train


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what the session makes once."""
    return tmp_path_factory.mktemp("workshop")


@pytest.fixture(scope="session")
def prepared(workshop: Path) -> Prepared:
    """A small simulation, prepared."""
    made = simulate(workshop / "logs", users=300, days=5, seed=7)
    return prepare_logs(workshop / "logs", workshop / "prepared", made.last_day)


@pytest.fixture(scope="session")
def run_folder(prepared: Prepared, workshop: Path) -> Path:
    """A FARM trained on it for one epoch."""
    train(prepared, workshop / "run", {"epochs": 1, "batch_size": 64, "learning_rate": 3e-3}, quiet=True)
    return workshop / "run"


@pytest.fixture(scope="session")
def artifact(run_folder: Path, workshop: Path) -> Path:
    """That FARM, exported."""
    return export_run(run_folder, workshop / "artifact").path


@pytest.fixture(scope="session")
def store_url(prepared: Prepared, workshop: Path) -> str:
    """An LMDB store with the same users and authors.  Tests read it; one that writes makes its own."""
    url = f"lmdb://{workshop / 'store'}"
    asyncio.run(materialize(prepared, url))
    return url
