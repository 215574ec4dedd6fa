"""The shapes of batches that traffic had of late: what a new model is warmed up with.

Letters: C candidates, Fc candidate columns.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from feature_store.matrices import user_inputs
from feature_store.schema import MISSING
from model.artifact.engine import BatchCost, Engine, EngineError, Piece, Scored

Shape = tuple[int, ...]  # candidates of each piece of a batch

FIRST: tuple[Shape, ...] = ((1,), (50,), (200,), (500,), (2000,), (50,) * 4, (200,) * 4)
"""Of a service that has had no traffic yet."""

_KEPT = 32


class Shapes:
    """The latest distinct ones."""

    def __init__(self) -> None:
        self._seen: dict[Shape, None] = {}
        self._lock = threading.Lock()

    def saw(self, pieces: Sequence[Piece]) -> None:
        """From any thread."""
        shape = tuple([len(piece.candidates) for piece in pieces])
        if shape in self._seen:
            return
        with self._lock:
            self._seen[shape] = None
            while len(self._seen) > _KEPT:
                del self._seen[next(iter(self._seen))]

    def latest(self) -> list[Shape]:
        """Those, and the first ones."""
        with self._lock:
            return list(dict.fromkeys([*FIRST, *self._seen]))


class RecordedEngine(Engine):
    """An engine that notes which batches it runs."""

    shapes: Shapes

    def run(self, pieces: Sequence[Piece]) -> tuple[list[Scored], BatchCost]:
        self.shapes.saw(pieces)
        return super().run(pieces)


def rehearse(engine: Engine, shapes: Sequence[Shape]) -> None:
    """Run a batch of each shape, of users and authors that nobody knows.

    EngineError when what comes out is no probability.
    """
    columns = len(engine.view.columns("candidate"))
    for shape in shapes:
        pieces = [
            Piece(user_inputs(engine.view, None, number, {}, 0), None, np.full((count, columns), MISSING))
            for number, count in enumerate(shape)
        ]
        scored, _ = Engine.run(engine, pieces)
        for one in scored:
            if not ((one.probabilities >= 0) & (one.probabilities <= 1)).all():
                raise EngineError(f"model {engine.version}: what it gives is no probability, for unknown authors")
