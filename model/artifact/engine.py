"""The engine: both towers of an artifact in ONNX Runtime, on CPU or CUDA.

Letters: U users, T tiles, K candidates of a tile, Fc candidate columns.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime as ort

from feature_store.matrices import UserInputs
from model.artifact.calibration import Calibration
from model.artifact.golden import load_golden
from model.artifact.manifest import CALIBRATION, CANDIDATE_TOWER, GOLDEN, USER_TOWER, Artifact

Provider = Literal["cpu", "cuda"]
UserState = dict[str, np.ndarray]

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class EngineError(RuntimeError):
    """The model cannot run here as asked: provider not in use, or outputs that are not the golden ones."""


class Engine:
    """A model at work.  Thread safe: ONNX Runtime sessions may be run from several threads at once.

    The provider that was asked for is asserted: ONNX Runtime would fall back to the CPU silently.
    """

    def __init__(self, artifact: Artifact, provider: Provider = "cpu", threads: int = 1) -> None:
        """threads: of one run of a tower."""
        self.artifact, self.manifest, self.view = artifact, artifact.manifest, artifact.manifest.view
        self.version, self.tasks = artifact.version, artifact.manifest.view.tasks
        self.provider: Provider = provider
        self.calibration = Calibration.load(artifact.path / CALIBRATION, self.tasks)
        self._user_tower = _session(artifact.path / USER_TOWER, provider, threads)
        self._candidate_tower = _session(artifact.path / CANDIDATE_TOWER, provider, threads)
        self._user_reads = [node.name for node in self._user_tower.get_inputs()]
        self._state_names = [spec.name for spec in artifact.manifest.state]
        self._candidate_reads = [n.name for n in self._candidate_tower.get_inputs() if n.name in set(self._state_names)]

    @classmethod
    def load(cls, path: str | Path, provider: Provider = "cpu", threads: int = 1, check: bool = True) -> Engine:
        """Open an artifact, verify its checksums, start the sessions and compare with the golden outputs."""
        engine = cls(Artifact.open(path), provider, threads)
        if check:
            engine.check_golden()
        return engine

    def user_state(self, users: UserInputs) -> UserState:
        """Run the user tower: everything that does not depend on the candidates, by name, [U, ...] each."""
        feeds = users.feeds()
        outputs = self._user_tower.run(self._state_names, {name: feeds[name] for name in self._user_reads})
        return dict(zip(self._state_names, outputs, strict=True))

    def score(self, state: UserState, candidates: np.ndarray, tile_user: np.ndarray) -> np.ndarray:
        """Run the candidate tower.

        candidates [T, K, Fc] int64, tile_user [T] int64 the row of each tile's user in `state`
        -> uncalibrated probabilities [T, K, tasks] float32
        """
        feeds = {name: state[name] for name in self._candidate_reads}
        (out,) = self._candidate_tower.run(None, {**feeds, "candidates": candidates, "tile_user": tile_user})
        probabilities: np.ndarray = out
        return probabilities

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


def _session(path: Path, provider: Provider, threads: int) -> ort.InferenceSession:
    wanted = _PROVIDERS[provider]
    if wanted not in ort.get_available_providers():
        raise EngineError(f"provider {provider}: this ONNX Runtime has only {', '.join(ort.get_available_providers())}")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=[wanted])
    if session.get_providers()[0] != wanted:
        raise EngineError(f"provider {provider}: ONNX Runtime fell back to {session.get_providers()[0]}")
    return session
