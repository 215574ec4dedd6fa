"""The oracle: calibrated, above what knows less, below the truth, and blind where nothing is planted."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import numpy as np
import pytest

from model.datasets.logs import prepare_logs
from model.datasets.oracle import OracleError, oracle
from model.datasets.prepared import Prepared
from model.datasets.simulator import simulate
from model.datasets.world import Planted
from model.metrics import auc


def prepared(folder: Path, planted: Planted, users: int = 1_500) -> Prepared:
    simulate(folder / "logs", users=users, days=6, seed=1, planted=planted)
    return prepare_logs(folder / "logs", folder / "prepared", date(2025, 1, 6))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared(tmp_path_factory.mktemp("oracle"), Planted())


def test_between_chance_and_the_truth(data: Prepared) -> None:
    rows = data.rows("test")
    scores, truth, labels = oracle(data, rows), data.samples["truth"][rows], data.samples["labels"][rows]
    for task in range(3):  # click, effective and long view; the others are too rare here
        figures = [auc(s[:, task], labels[:, task]) for s in (scores, truth)]
        assert figures[0] is not None
        assert figures[1] is not None
        assert 0.65 < figures[0] < figures[1]


def test_its_probabilities_are_those_of_the_labels(data: Prepared) -> None:
    """Overall and in each fifth of the samples, of the rates of clicks and of effective views."""
    rows = data.rows("test")
    scores, labels = oracle(data, rows), data.samples["labels"][rows]
    for task in range(2):
        order = np.array_split(np.argsort(scores[:, task]), 5)
        for part in order:
            predicted, observed = float(scores[part, task].mean()), labels[part, task].mean()
            assert observed == pytest.approx(predicted, abs=0.02 + 0.1 * predicted)


def test_it_knows_the_truth_when_nothing_is_hidden(tmp_path: Path) -> None:
    """Quality, page and hour are known; so is everything when nothing else is planted."""
    plain = Planted().without(*(n for n in Planted.names() if n not in ("context", "exposure", "sparsity")))
    data = prepared(tmp_path, plain, users=200)
    rows = data.rows("test")
    np.testing.assert_allclose(oracle(data, rows), data.samples["truth"][rows], atol=1e-5)


def test_it_reads_no_more_than_the_histories(data: Prepared) -> None:
    """Labels of the samples asked for make no difference, and neither does who else is asked for."""
    rows = data.rows("test")[:200]
    together = oracle(data, rows)
    np.testing.assert_allclose(together[50:60], oracle(data, rows[50:60]), atol=1e-6)


def test_other_data_has_no_oracle(data: Prepared, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(data.path, tmp_path / "copy")
    (tmp_path / "copy" / "simulation.json").unlink()
    with pytest.raises(OracleError, match="only simulated data"):
        oracle(Prepared.open(tmp_path / "copy"), np.arange(3))
