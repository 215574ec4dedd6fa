"""Every request of a load: when it was due, sent and answered, and what the answer says of itself.

Letters: R requests.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

NO_ANSWER = 0  # a status

_HEAD_BYTES = 400  # of an answer, in which it says its model


@dataclass(frozen=True)
class Kind:
    """What an answer says of itself."""

    status: int = NO_ANSWER
    version: str = ""  # of the model
    arm: str = ""  # of a split by users
    degraded: tuple[str, ...] = ()
    problem: str = ""  # type of an error


class Kinds:
    """Numbers of the kinds that were seen, found without parsing JSON."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[int, bytes, bytes, bytes], int] = {}
        self.seen: list[Kind] = []

    def number(self, status: int, answer: bytes) -> int:
        """Of an answer to POST /rank, good or not."""
        head = answer[:_HEAD_BYTES]
        if status == 200:
            key = status, _after(head, b'"model_version":"'), _after(head, b'"arm":"'), _degraded(answer)
        else:
            key = status, _after(head, b'"type":"'), b"", b""
        if key not in self._numbers:
            self._numbers[key] = len(self.seen)
            self.seen.append(_kind(*key))
        return self._numbers[key]


def _after(text: bytes, name: bytes) -> bytes:
    """The string that begins behind `name`; empty when that is not there."""
    at = text.find(name)
    return b"" if at < 0 else text[at + len(name) : text.index(b'"', at + len(name))]


def _degraded(answer: bytes) -> bytes:
    at = answer.rfind(b'"degraded":[')
    return b"" if at < 0 else answer[at + 11 : answer.index(b"]", at) + 1]


def _kind(status: int, first: bytes, arm: bytes, degraded: bytes) -> Kind:
    if status == 200:
        return Kind(status, first.decode(), arm.decode(), tuple(json.loads(degraded or b"[]")))
    return Kind(status, problem=first.decode().rpartition(":")[2])


@dataclass(frozen=True)
class Trace:
    """Requests in the order of their answers.  Times are of time.perf_counter, the same in all processes of Linux."""

    due: np.ndarray  # [R] s
    sent: np.ndarray  # [R] s, later than due by the wait for a connection
    done: np.ndarray  # [R] s
    body: np.ndarray  # [R] number of the request's line
    kind: np.ndarray  # [R] index of `kinds`
    kinds: tuple[Kind, ...]

    def __len__(self) -> int:
        return len(self.due)

    @property
    def ms(self) -> np.ndarray:
        """[R] latencies from when each was due."""
        return np.asarray(1000 * (self.done - self.due))

    def where(self, mask: np.ndarray) -> Trace:
        """mask: [R]"""
        rows = {name: getattr(self, name)[mask] for name in ("due", "sent", "done", "body", "kind")}
        return replace(self, **rows)

    def between(self, start: float, end: float) -> Trace:
        """Those that were due then."""
        return self.where((self.due >= start) & (self.due < end))

    def of(self, holds: Callable[[Kind], bool]) -> np.ndarray:
        """[R] whether it holds for the request's kind."""
        held = np.array([holds(kind) for kind in self.kinds], bool)
        return np.asarray(held[self.kind], bool)

    def only(self, holds: Callable[[Kind], bool]) -> Trace:
        return self.where(self.of(holds))

    def statuses(self) -> dict[int, int]:
        """Requests by status."""
        counts: Counter[int] = Counter()
        for number, many in zip(*np.unique(self.kind, return_counts=True), strict=True):
            counts[self.kinds[number].status] += int(many)
        return dict(sorted(counts.items()))

    def save(self, path: Path) -> None:
        kinds = json.dumps([asdict(kind) for kind in self.kinds])
        with path.open("wb") as file:
            np.savez(
                file, kinds=kinds, **{name: getattr(self, name) for name in ("due", "sent", "done", "body", "kind")}
            )

    @classmethod
    def load(cls, path: Path) -> Trace:
        with np.load(path, allow_pickle=False) as stored:
            kinds = json.loads(str(stored["kinds"]))
            rows = {name: stored[name] for name in ("due", "sent", "done", "body", "kind")}
        return cls(**rows, kinds=tuple(Kind(**{**kind, "degraded": tuple(kind["degraded"])}) for kind in kinds))


def joined(traces: list[Trace]) -> Trace:
    """All of them, one after another."""
    kinds = tuple(dict.fromkeys(kind for trace in traces for kind in trace.kinds))
    numbers = [np.array([kinds.index(kind) for kind in trace.kinds], int)[trace.kind] for trace in traces]
    rows = {
        name: np.concatenate([getattr(trace, name) for trace in traces]) for name in ("due", "sent", "done", "body")
    }
    return Trace(**rows, kind=np.concatenate(numbers), kinds=kinds)
