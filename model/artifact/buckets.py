"""Fixed shapes for what comes in any number: the sizes that CUDA graphs are captured for.  Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from model.artifact.batch import EngineError


def check_buckets(name: str, sizes: Sequence[int]) -> None:
    """EngineError unless they rise from one or more."""
    if not sizes or sizes[0] < 1 or any(a >= b for a, b in pairwise(sizes)):
        raise EngineError(f"{name}: must be whole numbers from 1 on, each greater than the one before, not {sizes}")


def bucket_of(count: int, sizes: Sequence[int]) -> int:
    """The least size that takes `count`."""
    return next(size for size in sizes if size >= count)


def portions(count: int, sizes: Sequence[int]) -> list[tuple[int, int]]:
    """First and end of the runs over `count` things, as few as the greatest size allows.

    >>> portions(300, (16, 128))
    [(0, 128), (128, 256), (256, 300)]
    """
    return [(start, min(start + sizes[-1], count)) for start in range(0, count, sizes[-1])]
