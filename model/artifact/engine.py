"""The engine: both towers of an artifact in ONNX Runtime, on CPU or CUDA.

Letters: U users, T tiles, K candidates of a tile, C candidates of a piece, Fc candidate columns.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from feature_store.matrices import UserInputs
from model.artifact.batch import BatchCost, EngineError, EngineOptions, Piece, Provider, Scored, UserState
from model.artifact.calibration import Calibration
from model.artifact.cuda import DeviceTowers
from model.artifact.golden import load_golden
from model.artifact.host import HostTowers
from model.artifact.manifest import CALIBRATION, GOLDEN, Artifact, ArtifactError, TensorSpec
from model.artifact.providers import order_of, require

__all__ = ["BatchCost", "Engine", "EngineError", "EngineOptions", "Piece", "Provider", "Scored", "UserState"]

_DEFAULTS = EngineOptions()
_log = logging.getLogger(__name__)


class Engine:
    """A model at work, thread safe.

    `provider` is what is in use, which is asserted: ONNX Runtime would fall back to the CPU silently.
    """

    def __init__(
        self,
        artifact: Artifact,
        provider: str | Sequence[str] = "cpu",
        threads: int = 1,
        options: EngineOptions = _DEFAULTS,
    ) -> None:
        """provider: one, or several in order of fallback;  threads: of one run of a tower on the CPU."""
        self.artifact, self.manifest, self.view = artifact, artifact.manifest, artifact.manifest.view
        self.version, self.tasks = artifact.version, artifact.manifest.view.tasks
        self.options = options
        self.calibration = Calibration.load(artifact.path / CALIBRATION, self.tasks)
        self.state_bytes = sum(_bytes(spec) for spec in self.manifest.state)  # of one user
        self.provider, self._towers = _start(artifact, order_of(provider), threads, options)
        self.nodes = dict(self._towers.nodes)  # of both towers, by ONNX Runtime's provider; empty on the CPU
        self.cuda_graphs = self._towers.cuda_graphs  # in use

    @classmethod
    def load(
        cls,
        path: str | Path,
        provider: str | Sequence[str] = "cpu",
        threads: int = 1,
        check: bool = True,
        options: EngineOptions = _DEFAULTS,
    ) -> Engine:
        """Open an artifact, verify its checksums, start the sessions and compare with the golden outputs."""
        engine = cls(Artifact.open(path), provider, threads, options)
        if check:
            engine.check_golden()
        return engine

    def run(self, pieces: Sequence[Piece]) -> tuple[list[Scored], BatchCost]:
        """Score the candidates of several users at once, with the states that were given or new ones.

        A piece alone is one tile with K = C on the CPU.  A user's state does not depend on the others of the batch.
        """
        return self._towers.run(pieces)

    def user_state(self, users: UserInputs) -> UserState:
        """Run the user tower: everything that does not depend on the candidates, by name, [U, ...] each."""
        return self._towers.user_state(users)

    def score(self, state: UserState, candidates: np.ndarray, tile_user: np.ndarray) -> np.ndarray:
        """Run the candidate tower.

        candidates [T, K, Fc] int64, tile_user [T] int64 the row of each tile's user in `state`
        -> uncalibrated probabilities [T, K, tasks] float32
        """
        return self._towers.score(state, candidates, tile_user)

    def score_user(self, state: UserState, candidates: np.ndarray) -> np.ndarray:
        """All candidates of one user as one tile.  [C, Fc] int64 -> [C, tasks] float32"""
        scored: np.ndarray = self.score(state, candidates[None], np.zeros(1, np.int64))[0]
        return scored

    def check_golden(self) -> float:
        """Greatest difference from the golden probabilities; EngineError when it is beyond the manifest's tolerance."""
        worst = 0.0
        for index, case in enumerate(load_golden(self.artifact.path / GOLDEN)):
            scored = self.score(self.user_state(case.users), case.candidates, case.tile_user)
            difference = float(np.abs(scored - case.probabilities).max())
            if not difference <= self.manifest.golden_tolerance:
                raise EngineError(
                    f"golden case {index}: probabilities differ by {difference:.2g} on {self.provider}, "
                    f"allowed is {self.manifest.golden_tolerance:.2g}"
                )
            worst = max(worst, difference)
        return worst


def _start(
    artifact: Artifact, order: tuple[Provider, ...], threads: int, options: EngineOptions
) -> tuple[Provider, HostTowers | DeviceTowers]:
    """The first provider of the order that starts.  EngineError says why none does."""
    refusals = []
    for provider in order:
        try:
            towers = _towers(artifact, provider, threads, options)
        except EngineError as error:
            _log.warning("%s", error)
            refusals.append(str(error))
        else:
            _log.info("engine: provider %s of %s", provider, ",".join(order))
            return provider, towers
    raise EngineError("; ".join(refusals))


def _towers(artifact: Artifact, provider: Provider, threads: int, options: EngineOptions) -> HostTowers | DeviceTowers:
    """EngineError when the provider does not start, whatever keeps it from that."""
    require(provider)
    if provider == "cpu":
        return HostTowers(artifact, threads)
    try:
        return DeviceTowers(artifact, provider, options)
    except (EngineError, ArtifactError):
        raise
    except Exception as error:  # no GPU, no memory: ONNX Runtime's own errors share no base class
        raise EngineError(f"provider {provider}: {error}") from error


def _bytes(spec: TensorSpec) -> int:
    return int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize
