"""What goes into one run of both towers, and what comes out.

Letters: U users, T tiles, K candidates of a tile, C candidates of a piece, Fc candidate columns.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from feature_store.matrices import UserInputs
from model.artifact.tiles import Tiles

Provider = Literal["cpu", "cuda", "tensorrt"]
UserState = dict[str, Any]  # of U users.  CPU: arrays [U, ...] by name; a device: {"slot": [Slot, ...]} (pool.py)


class EngineError(RuntimeError):
    """The model cannot run here as asked: provider not in use, or outputs that are not the golden ones."""


@dataclass(frozen=True)
class EngineOptions:
    """How an engine runs.  What only a GPU reads says so."""

    tile: int = 32  # K of a GPU's batches; the CPU chooses K for each batch (tiles.py)
    device_id: int = 0  # which GPU
    streams: int = 1  # GPU: runs at once, each with sessions, buffers and CUDA graphs of its own
    cuda_graphs: bool = True  # GPU: replay captured graphs, one for each bucket below
    graph_users: tuple[int, ...] = (16,)  # GPU: users of one run of the user tower, padded up to the next of these
    graph_tiles: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)  # GPU: tiles of one run of the candidate tower
    tf32: bool = False  # GPU: products of fp32 with 10 bits of mantissa, beyond the golden tolerance of fp32
    state_slots: int = 4096  # GPU: user states that can be alive, those in the cache included
    trt_cache: Path | None = None  # folder of TensorRT's engines; None: none are kept


@dataclass(frozen=True)
class Piece:
    """Candidates of one user, with what the user tower reads or with its state from an earlier run."""

    users: UserInputs | None  # U = 1; None when `state` is given
    state: UserState | None  # of one user; None: the user tower runs
    candidates: np.ndarray  # [C, Fc] int64


@dataclass(frozen=True)
class Scored:
    """What became of a piece."""

    probabilities: np.ndarray  # [C, tasks] float32, not calibrated
    state: UserState  # of the piece's user, to be kept


class Clock:
    """Measures one run in the thread that makes it."""

    def __init__(self) -> None:
        self._laps: list[tuple[float, float]] = []
        self.lap()

    def lap(self) -> None:
        """A tower has ended: the user tower, then the candidate tower."""
        self._laps.append((time.perf_counter(), time.thread_time()))

    def cost(self, pieces: Sequence[Piece], tiles: Tiles) -> BatchCost:
        """Of a run with both laps."""
        start, user, candidate = self._laps
        return BatchCost(
            user_tower_s=user[0] - start[0],
            candidate_tower_s=candidate[0] - user[0],
            user_tower_cpu_s=user[1] - start[1],
            candidate_tower_cpu_s=candidate[1] - user[1],
            users=sum(piece.state is None for piece in pieces),
            tiles=tiles.tiles,
            places=tiles.places,
            candidates=sum(tiles.counts),
        )


@dataclass(frozen=True)
class BatchCost:
    """What one run took: seconds of the clock and of the calling thread's CPU."""

    user_tower_s: float
    candidate_tower_s: float
    user_tower_cpu_s: float
    candidate_tower_cpu_s: float
    users: int  # for whom the user tower ran
    tiles: int
    places: int  # T * K
    candidates: int  # of the places; the rest are pads
