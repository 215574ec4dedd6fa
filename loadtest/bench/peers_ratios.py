"""Of `farm bench peers`: ratios of figures that were measured in turn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model.study.statistics import Estimate


@dataclass(frozen=True)
class Ratio:
    """The geometric mean of ratios, and its 95% interval."""

    ratio: float
    low: float
    high: float


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Of ours to theirs, block by block: Student's t interval of the mean of the logarithms.

    ours, theirs: one positive figure of each block, in order.  ValueError for fewer than two blocks.
    """
    if len(ours) != len(theirs) or len(ours) < 2:
        raise ValueError(f"{len(ours)} and {len(theirs)} blocks: a ratio needs two or more of each, as many of both")
    logs = np.log(np.asarray(ours, float) / np.asarray(theirs, float))
    error = float(logs.std(ddof=1)) / math.sqrt(len(logs))
    low, high = Estimate(float(logs.mean()), error, len(logs) - 1).interval()
    return Ratio(math.exp(logs.mean()), math.exp(low), math.exp(high))
