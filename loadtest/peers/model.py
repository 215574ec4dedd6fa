"""The model behind every peer: what an engineer writes in a day around two ONNX files and a feature store.

It shares with the service what belongs to model and store (records, matrices, calibration, formula), so that answers
are equal, and nothing of how the service computes them.

Letters: U users, T tiles, K candidates of a tile, C candidates of a request, B requests of a batch, F columns.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import orjson
from pydantic import BaseModel

from feature_store.matrices import UserInputs, candidate_matrix, user_inputs
from feature_store.schema import MISSING
from feature_store.store import open_store
from model.artifact.calibration import Calibration
from model.artifact.formula import Formula
from model.artifact.manifest import CALIBRATION, CANDIDATE_TOWER, USER_TOWER, Artifact

ROUTE = "/rank"
STORE_SETTINGS = {"FARM_REDIS_AUTHOR_TTL_S": "3600"}
"""Of every server: those that have no block are stopped, for longer than authors are remembered by default."""

HOST = "127.0.0.1"


class RankBody(BaseModel):
    """The request."""

    user_id: int
    candidates: list[int]
    page: int | None = None
    top_k: int | None = None
    now_ms: int | None = None


@dataclass(frozen=True)
class PeerSettings:
    """What a peer serves, and where.  In the environment, because some frameworks start processes of their own."""

    artifact: Path
    store: str
    tiled: bool  # the user's history repeated for each candidate: one row of the model is one (user, candidate)
    port: int

    def environment(self) -> dict[str, str]:
        return {
            "FARM_PEER_ARTIFACT": str(self.artifact),
            "FARM_PEER_STORE": self.store,
            "FARM_PEER_TILED": str(int(self.tiled)),
            "FARM_PEER_PORT": str(self.port),
            **STORE_SETTINGS,
        }

    @classmethod
    def of_environment(cls) -> PeerSettings:
        given = os.environ
        return cls(
            Path(given["FARM_PEER_ARTIFACT"]),
            given["FARM_PEER_STORE"],
            given["FARM_PEER_TILED"] == "1",
            int(given["FARM_PEER_PORT"]),
        )


@dataclass(frozen=True)
class Inputs:
    """A request with all that the model reads for it."""

    author_ids: np.ndarray  # [C] int64
    top_k: int | None
    users: UserInputs  # U = 1
    candidates: np.ndarray  # [C, F] int64
    degraded: list[str]
    started: float  # perf_counter
    store_s: float


class PeerModel:
    """Both towers, the store and the formula; of one event loop."""

    def __init__(self, settings: PeerSettings) -> None:
        artifact = Artifact.open(settings.artifact)
        self._view, self._version = artifact.manifest.view, artifact.version
        self._tasks = self._view.tasks
        self._calibration = Calibration.load(artifact.path / CALIBRATION, self._tasks)
        self._formula = Formula()
        self._user_tower = _session(artifact.path / USER_TOWER)
        self._candidate_tower = _session(artifact.path / CANDIDATE_TOWER)
        self._user_reads = [node.name for node in self._user_tower.get_inputs()]
        self._state = [node.name for node in self._user_tower.get_outputs()]
        self._candidate_reads = {node.name for node in self._candidate_tower.get_inputs()}
        self._store = open_store(settings.store)
        self._tiled = settings.tiled

    async def rank(self, body: RankBody) -> bytes:
        """The JSON answer of a request."""
        return self.answer([await self.read(body)])[0]

    async def read(self, body: RankBody) -> Inputs:
        """User and authors from the store, in one round trip, as the matrices that the towers read."""
        started = time.perf_counter()
        author_ids = np.array(body.candidates, np.int64)
        found = await self._store.read(body.user_id, author_ids)
        store_s = time.perf_counter() - started
        now_ms = int(1000 * time.time()) if body.now_ms is None else body.now_ms
        context = {} if body.page is None else {"page": body.page}
        users = user_inputs(self._view, found.user, body.user_id, context, now_ms)
        no_lives = np.full(len(author_ids), MISSING)
        candidates, unknown = candidate_matrix(self._view, author_ids, no_lives, found.authors)
        degraded = ["no_history"] if found.user is None else []
        degraded += ["unknown_authors"] if unknown.any() else []
        return Inputs(author_ids, body.top_k, users, candidates, degraded, started, store_s)

    def answer(self, batch: Sequence[Inputs]) -> list[bytes]:
        """The JSON answers of read requests: [B].  Several are run together where the shapes allow it."""
        queued = time.perf_counter()
        scored, user_s, candidate_s = self._score(batch)
        timing = {"user_tower": 1000 * user_s, "candidate_tower": 1000 * candidate_s}
        return [self._render(one, scores, timing, queued) for one, scores in zip(batch, scored, strict=True)]

    async def close(self) -> None:
        await self._store.close()

    def _score(self, batch: Sequence[Inputs]) -> tuple[list[np.ndarray], float, float]:
        """Probabilities [C, tasks] of each request, and seconds of each tower."""
        counts = {len(one.candidates) for one in batch}
        if len(counts) > 1:  # tiles of one shape only
            parts = [self._score([one]) for one in batch]
            return [p[0][0] for p in parts], sum(p[1] for p in parts), sum(p[2] for p in parts)
        start = time.perf_counter()
        feeds = {name: np.concatenate([vars(one.users)[name] for one in batch]) for name in self._user_reads}  # [B, ..]
        candidates = np.stack([one.candidates for one in batch])  # [B, C, F]
        shape = candidates.shape
        if self._tiled:
            feeds = {name: np.repeat(array, shape[1], axis=0) for name, array in feeds.items()}  # U = B * C
            candidates = candidates.reshape(-1, 1, shape[2])  # T = B * C, K = 1
        state = dict(zip(self._state, self._user_tower.run(None, feeds), strict=True))
        middle = time.perf_counter()
        state = {name: array for name, array in state.items() if name in self._candidate_reads}
        rows = np.arange(len(candidates))
        (out,) = self._candidate_tower.run(None, {**state, "candidates": candidates, "tile_user": rows})
        return list(out.reshape(shape[0], shape[1], -1)), middle - start, time.perf_counter() - middle

    def _render(self, one: Inputs, probabilities: np.ndarray, timing: dict[str, float], queued: float) -> bytes:
        probabilities = self._calibration.apply(probabilities)
        scores = self._formula.score(probabilities, self._tasks)
        order = np.argsort(-scores, kind="stable")[: one.top_k]
        timing_ms = {"store": 1000 * one.store_s, "queue": 1000 * (queued - one.started - one.store_s), **timing}
        answer = {
            "request_id": uuid.uuid4().hex,
            "model_version": self._version,
            "ranking": self._rows(one, probabilities[order], scores[order], order),
            "degraded": one.degraded,
            "timing_ms": {**timing_ms, "total": 1000 * (time.perf_counter() - one.started)},
        }
        return orjson.dumps(answer)

    def _rows(
        self, one: Inputs, probabilities: np.ndarray, scores: np.ndarray, order: np.ndarray
    ) -> list[dict[str, Any]]:
        columns = self._view.columns("candidate")
        lives = (
            one.candidates[order, columns.index("live_id")] if "live_id" in columns else np.full(len(order), MISSING)
        )
        values = (one.author_ids[order].tolist(), lives.tolist(), scores.tolist(), probabilities.tolist())
        return [
            {
                "author_id": author,
                "live_id": None if live == MISSING else live,
                "score": score,
                "xtr": dict(zip(self._tasks, xtr, strict=True)),
            }
            for author, live, score, xtr in zip(*values, strict=True)
        ]


def _session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
