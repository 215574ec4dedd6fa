"""Negative sampling: an epoch keeps a share of the samples without any positive label, another share every time."""

from __future__ import annotations

import numpy as np

from model.config import TrainConfig
from model.datasets.prepared import Prepared

_STREAM = 1  # of (seed, epoch): batches are drawn from the stream without a number


def rows_of_epoch(data: Prepared, config: TrainConfig, epoch: int) -> np.ndarray:
    """The training rows that an epoch sees, ascending; a function of (seed, epoch)."""
    rows = data.rows("train")
    if config.negative_rate == 1:
        return rows
    positive: np.ndarray = (data.samples["labels"][rows] == 1).any(1)  # [N]
    draws = np.random.default_rng((config.seed, epoch, _STREAM)).random(len(rows))
    kept: np.ndarray = rows[positive | (draws < config.negative_rate)]
    return kept


def negative_weight(config: TrainConfig) -> float:
    """What a kept sample without a positive label counts in L_XTRs: its loss has then the mean of all of them."""
    return 1 / config.negative_rate if config.negative_weighting else 1.0


def calibration_rate(config: TrainConfig) -> float:
    """The share of negatives that the model's probabilities are off by, for calibration."""
    return 1.0 if config.negative_weighting else config.negative_rate
