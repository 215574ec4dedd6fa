"""A model that was never trained: as fast as a trained one, and made in seconds."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

_KNOTS = 40  # of each task's calibration, about as many as a trained one has


def untrained(folder: Path, table_rows: str = "") -> Path:
    """The artifact of an untrained FARM of the default view, every task calibrated, in `folder` / "artifact".

    table_rows: other sizes of tables, as model.train.tables.with_table_rows takes them.
    """
    from feature_store.schema import default_schema
    from model.artifact.calibration import Calibration
    from model.config import ModelConfig
    from model.datasets.logs import default_view
    from model.export import export_model
    from model.farm import Ranker
    from model.train import Run
    from model.train.tables import with_table_rows

    view = with_table_rows(default_view(), table_rows)
    run = Run({"arch": "farm"}, view, default_schema(), "untrained", {})
    knots = np.linspace(0.002, 0.97, _KNOTS)
    calibration = Calibration(view.tasks, dict.fromkeys(view.tasks, (knots, 0.9 * knots)))
    return export_model(Ranker(ModelConfig(), view), run, folder / "artifact", calibration).path


@contextmanager
def given_or_untrained(artifact: Path | None) -> Iterator[Path]:
    """An artifact, or without one that of an untrained FARM, for as long."""
    with tempfile.TemporaryDirectory() as scratch:
        yield artifact or untrained(Path(scratch))
