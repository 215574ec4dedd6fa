"""Frames between the workers and an engine process, over a unix socket: one each way for a request.

A frame is a header (bytes of the body, number of the request, kind) and a body of little-endian 64-bit integers
(requests) or the cost and float32 probabilities (answers).  Shapes are the model view's; the number of candidates
follows from the length.
Letters: C candidates.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from math import prod

import numpy as np

from feature_store.matrices import UserInputs
from feature_store.view import ModelView
from service.scoring.scorer import Score

HELLO, SCORE, CANCEL, SCORED, REFUSED, FAILED, LATE, SPOILT = range(8)
"""Kinds of frames.  HELLO: who answers, as JSON, once.  REFUSED: the engine is stopping.  FAILED: why, as text.  LATE:
the deadline came first.  SPOILT: the model put out no probabilities, as text."""

_HEAD = struct.Struct("<IIII")  # bytes of the body, number of the request, kind, 0: bodies stay aligned
_TERMS = struct.Struct("<dq")  # seconds until the deadline, 1 if the priority is low
_COST = struct.Struct("<dddd")  # seconds in queue, user tower, candidate tower; 1 if the state was kept


def frame(kind: int, number: int, body: bytes = b"") -> bytes:
    """number: of the request, chosen by who asks."""
    return _HEAD.pack(len(body), number, kind, 0) + body


class Frames:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, int, bytes]]:
        """The frames that `data` completes: kind, number, body."""
        self._rest += data
        start = 0
        while len(self._rest) - start >= _HEAD.size:
            size, number, kind, _ = _HEAD.unpack_from(self._rest, start)
            end = start + _HEAD.size + size
            if end > len(self._rest):
                break
            yield kind, number, bytes(self._rest[start + _HEAD.size : end])
            start = end
        del self._rest[:start]


class Layout:
    """Requests and answers of one model view as bytes."""

    def __init__(self, view: ModelView) -> None:
        length, attributes = view.history_length, len(view.columns("user")) + len(view.columns("context"))
        self._shapes = {
            "video": (1, length, len(view.columns("video"))),
            "video_length": (1,),
            "live": (1, length, len(view.columns("live"))),
            "live_length": (1,),
            "user": (1, attributes),
            "now": (1,),
        }
        self._user_values = sum(prod(shape) for shape in self._shapes.values())
        self._columns, self._tasks = len(view.columns("candidate")), len(view.tasks)

    def request(self, users: UserInputs, candidates: np.ndarray, left_s: float = math.inf, low: bool = False) -> bytes:
        """users: U = 1;  candidates [C, Fc] int64;  left_s: until the deadline;  low: its priority."""
        arrays = [np.asarray(part, np.int64).tobytes() for part in self._parts(users, candidates)]
        return b"".join([_TERMS.pack(left_s, low), *arrays])

    def parse_request(self, body: bytes) -> tuple[UserInputs, np.ndarray, float, bool]:
        """What `request` was given; ValueError for a body that is none."""
        if len(body) < _TERMS.size:
            raise ValueError(f"a request of {len(body)} bytes")
        left_s, low = _TERMS.unpack_from(body)
        return *self._cut(np.frombuffer(body, np.int64, offset=_TERMS.size)), left_s, bool(low)

    def answer(self, score: Score) -> bytes:
        cost = _COST.pack(score.queue_s, score.user_tower_s, score.candidate_tower_s, score.kept)
        return cost + np.asarray(score.probabilities, np.float32).tobytes()

    def parse_answer(self, body: bytes) -> Score:
        """What `answer` was given."""
        queue_s, user_tower_s, candidate_tower_s, kept = _COST.unpack_from(body)
        probabilities = np.frombuffer(body, np.float32, offset=_COST.size).reshape(-1, self._tasks)
        return Score(probabilities, queue_s, user_tower_s, candidate_tower_s, bool(kept))

    def _parts(self, users: UserInputs, candidates: np.ndarray) -> list[np.ndarray]:
        """All arrays of a request, in their order."""
        return [*(getattr(users, name) for name in self._shapes), candidates]

    def _cut(self, values: np.ndarray) -> tuple[UserInputs, np.ndarray]:
        """The arrays of a request, one after the other [values] int64 -> users and candidates, views."""
        inputs, start = {}, 0
        for name, shape in self._shapes.items():
            stop = start + prod(shape)
            inputs[name], start = values[start:stop].reshape(shape), stop
        return UserInputs(**inputs), values[self._user_values :].reshape(-1, self._columns)
