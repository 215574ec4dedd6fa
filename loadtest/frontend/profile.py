"""How much load when: stages of a shape, and the exact times of arrivals that do not wait for answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, count
from math import inf
from random import Random
from typing import Literal


@dataclass(frozen=True)
class Stage:
    """A time of even load."""

    seconds: float
    level: float  # in parts of the whole load


SHAPES: dict[str, tuple[Stage, ...]] = {
    "constant": (Stage(inf, 1.0),),
    "step": tuple(Stage(24.0, level) for level in (0.2, 0.4, 0.6, 0.8, 1.0)),
    "spike": (Stage(48.0, 0.3), Stage(24.0, 1.0), Stage(48.0, 0.3)),
    "soak": (Stage(3600.0, 1.0),),
}
"""Of a shape that is given another length, each stage becomes longer or shorter in proportion."""


def stages_of(shape: str, seconds: float | None) -> tuple[Stage, ...]:
    """A shape's stages in so many seconds; None: its own length."""
    stages = SHAPES[shape]
    if seconds is None:
        return stages
    if len(stages) == 1:
        return (Stage(seconds, stages[0].level),)
    factor = seconds / sum(stage.seconds for stage in stages)
    return tuple(Stage(factor * stage.seconds, stage.level) for stage in stages)


def level_at(stages: Sequence[Stage], seconds: float) -> float | None:
    """The level at a time from the start; None when all stages are over."""
    for stage in stages:
        if seconds < stage.seconds:
            return stage.level
        seconds -= stage.seconds
    return None


def arrivals(stages: Sequence[Stage], rate: float, counts: Iterator[float]) -> Iterator[float]:
    """Seconds from the start at which requests are due, ascending: when the integral of the rate reaches each count.

    rate: per second at level 1.  counts: ascending; see `counts_of`.
    """
    start, passed = 0.0, 0.0  # of the stage, and the requests of those before it
    wanted = next(counts)
    for stage in stages:
        while wanted < passed + stage.seconds * rate * stage.level:
            yield start + (wanted - passed) / (rate * stage.level)
            wanted = next(counts)
        start, passed = start + stage.seconds, passed + stage.seconds * rate * stage.level


def counts_of(spacing: Literal["constant", "poisson"], number: int, of: int, rng: Random) -> Iterator[float]:
    """The requests that process `number` of `of` sends, as counts of all: every of-th, or Poisson's with its share."""
    return map(float, count(number, of)) if spacing == "constant" else accumulate(_gaps(of, rng))


def _gaps(mean: float, rng: Random) -> Iterator[float]:
    while True:
        yield rng.expovariate(1 / mean)
