"""Both towers on the CPU.

Letters: U users, T tiles, K candidates of a tile, Fc candidate columns.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnxruntime as ort

from feature_store.matrices import UserInputs
from model.artifact.batch import BatchCost, Clock, Piece, Scored, UserState
from model.artifact.golden import load_golden
from model.artifact.manifest import CANDIDATE_TOWER, GOLDEN, USER_TOWER, Artifact
from model.artifact.providers import open_session, session_options
from model.artifact.tables import SharedTables
from model.artifact.tiles import Tiles, best_size, pack

MOST_USERS = 8  # of one run of the user tower: more gain nothing, and their events no longer fit the core's cache
_FIRST_USER = np.zeros(1, np.int64)
_log = logging.getLogger(__name__)


class HostTowers:
    """Two sessions that any number of threads may run at once."""

    nodes: Mapping[str, int] = MappingProxyType({})  # not counted: there is only one provider
    cuda_graphs = False

    def __init__(self, artifact: Artifact, threads: int) -> None:
        self._tables = SharedTables(artifact.path)
        self._user_tower = self._open(artifact.path, USER_TOWER, threads)
        self._candidate_tower = self._open(artifact.path, CANDIDATE_TOWER, threads)
        self._user_reads = [node.name for node in self._user_tower.get_inputs()]
        self._state_names = [spec.name for spec in artifact.manifest.state]
        kept = set(self._state_names)
        self._state_reads = [node.name for node in self._candidate_tower.get_inputs() if node.name in kept]
        self._tasks = len(artifact.manifest.view.tasks)
        self.users_at_once = self._exact_users(load_golden(artifact.path / GOLDEN)[0].users)  # in one run of the tower

    def _open(self, folder: Path, tower: str, threads: int) -> ort.InferenceSession:
        options = session_options(threads)
        self._tables.give(options, tower)
        return open_session(folder / tower, "cpu", options)

    def user_state(self, users: UserInputs) -> UserState:
        """Arrays [U, ...] by name."""
        feeds = {name: getattr(users, name) for name in self._user_reads}
        outputs = self._user_tower.run(self._state_names, feeds)
        return dict(zip(self._state_names, outputs, strict=True))

    def score(self, state: UserState, candidates: np.ndarray, tile_user: np.ndarray) -> np.ndarray:
        """candidates [T, K, Fc], tile_user [T] rows of `state` -> probabilities [T, K, tasks]"""
        feeds = {name: state[name] for name in self._state_reads}
        feeds["candidates"], feeds["tile_user"] = candidates, tile_user
        probabilities: np.ndarray = self._candidate_tower.run(("probabilities",), feeds)[0]
        return probabilities

    def run(self, pieces: Sequence[Piece]) -> tuple[list[Scored], BatchCost]:
        """States of those without one, several users at a time; then all candidates in one run."""
        clock = Clock()
        new = [_users_of(piece) for piece in pieces if piece.state is None]
        runs = self._run_users(new)
        made = (state for run in runs for state in _apart(run))
        states = [next(made) if piece.state is None else piece.state for piece in pieces]
        clock.lap()
        joined = runs[0] if len(new) == len(pieces) and len(runs) == 1 else None
        tiles, probabilities = self._score_all(pieces, states, joined)
        clock.lap()
        return [Scored(p, state) for p, state in zip(probabilities, states, strict=True)], clock.cost(pieces, tiles)

    def _run_users(self, users: Sequence[UserInputs]) -> list[UserState]:
        """Several users at a time."""
        at_once = self.users_at_once
        return [self.user_state(_joined(users[first : first + at_once])) for first in range(0, len(users), at_once)]

    def _exact_users(self, users: UserInputs) -> int:
        """MOST_USERS if states of a batch are bit for bit those of each user alone on this machine; 1 if not.

        The graph sees to it (model.export.user), but which kernels ONNX Runtime has for a product is the CPU's matter.
        Every size of batch that will run is tried, with other users of other histories in each.
        """
        rows = [UserInputs(**_rows(users.feeds(), row)) for row in range(len(users.now))]
        alone = [self.user_state(row) for row in rows]
        for size in range(2, MOST_USERS + 1):
            batch = [(size + place) % len(rows) for place in range(size)]
            state = self.user_state(_joined([rows[row] for row in batch]))
            if not all(_same(_rows(state, place), alone[row]) for place, row in enumerate(batch)):
                _log.warning("engine: states of %d users at once are not those of each alone: one user at a time", size)
                return 1
        return MOST_USERS

    def _score_all(
        self, pieces: Sequence[Piece], states: Sequence[UserState], joined: UserState | None
    ) -> tuple[Tiles, list[np.ndarray]]:
        """joined: the states as one, where one run has made them all."""
        counts = [len(piece.candidates) for piece in pieces]
        if not any(counts):
            return pack(counts, 1), [np.empty((0, self._tasks), np.float32) for _ in pieces]
        if len(pieces) == 1:
            candidates = pieces[0].candidates[None]  # [1, C, Fc]
            return pack(counts, counts[0]), [self.score(states[0], candidates, _FIRST_USER)[0]]
        tiles = pack(counts, best_size(counts))
        candidates = np.empty((tiles.tiles, tiles.size, pieces[0].candidates.shape[1]), np.int64)
        tiles.fill([piece.candidates for piece in pieces], candidates)
        if joined is None:
            joined = {name: np.concatenate([state[name] for state in states]) for name in self._state_reads}
        return tiles, tiles.cut(self.score(joined, candidates, tiles.tile_user()))


def _users_of(piece: Piece) -> UserInputs:
    if piece.users is None:
        raise ValueError("piece.users: must be given where piece.state is not")
    return piece.users


def _joined(users: Sequence[UserInputs]) -> UserInputs:
    """U = 1 each -> all of them."""
    if len(users) == 1:
        return users[0]
    feeds = [one.feeds() for one in users]
    return UserInputs(**{name: np.concatenate([arrays[name] for arrays in feeds]) for name in feeds[0]})


def _apart(users: UserState) -> Iterator[UserState]:
    """The state of each user [U, ...] in arrays of its own, so that keeping one keeps no other."""
    count = len(next(iter(users.values())))
    yield from [users] if count == 1 else (_rows(users, row) for row in range(count))


def _rows(arrays: Mapping[str, np.ndarray], row: int) -> dict[str, np.ndarray]:
    """One user's, U = 1, copied."""
    return {name: array[row : row + 1].copy() for name, array in arrays.items()}


def _same(left: UserState, right: UserState) -> bool:
    """Bit for bit: a negative zero is no zero."""
    return all(array.tobytes() == right[name].tobytes() for name, array in left.items())
