"""The best that can be reached, where the truth is known: the AUC of the true probabilities, and of an oracle's."""

from __future__ import annotations

import numpy as np

from model.datasets.oracle import oracle
from model.datasets.prepared import Prepared
from model.metrics import auc
from model.study.drawn import Part, Progress, parts
from model.study.simulation import Simulation

Bounds = dict[str, dict[str, float | None]]  # "truth" and "oracle", by task; None where not measurable or not known


def bounds(data: Prepared, simulation: Simulation, progress: Progress) -> Bounds:
    """AUC per task on the test days of what the data knows.

    truth: of samples["truth"], the probabilities that the labels were drawn with.
    oracle: of samples["oracle"], else of model.datasets.oracle, which sees what a ranker sees.
    """
    rows = data.rows("test")
    scores = {name: np.asarray(data.samples[name][rows]) for name in ("truth", "oracle") if name in data.samples}
    if "oracle" not in scores and simulation.oracle:
        progress("asking the oracle")
        scores["oracle"] = oracle(data, rows)
    whole = [part for part in parts(data) if part.group is None]
    return {name: {part.task: _auc(part, values) for part in whole} for name, values in scores.items()}


def _auc(part: Part, scores: np.ndarray) -> float | None:
    """None when the probability of some known label is not known: it would be of other samples than the variants'."""
    asked = scores[part.rows, part.index]
    return None if np.isnan(asked).any() or not part.measurable else auc(asked, part.labels)
