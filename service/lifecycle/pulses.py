"""The progress of each process, in memory that the parent reads: whether it lives, and how its model does.

Times are time.monotonic(), which all processes of a machine share.
"""

from __future__ import annotations

import mmap
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

_ARMS = 2  # the model of most users, and that of a split
_FIELDS = 2 + 4 * _ARMS  # beat, busy_s, and of each arm number, requests, faults, spoilt: see Pulse
_NUMBER_BYTES = 8


@runtime_checkable
class Busy(Protocol):
    """A scorer that can tell whether its executors get on."""

    def busy_s(self) -> float:
        """How long the batch that has run longest has been running; 0 when none runs."""


@dataclass(frozen=True)
class Outcomes:
    """Of requests that one model has answered."""

    number: int = 0  # of the order that made it serve
    requests: int = 0
    faults: int = 0  # that failed for no fault of theirs
    spoilt: int = 0  # among them, whose probabilities were none


@dataclass(frozen=True)
class Pulse:
    """Of one process."""

    beat: float = 0.0  # when its event loop last turned; 0: not yet
    busy_s: float = 0.0  # how long, at that time, the oldest batch had been running
    outcomes: Outcomes = Outcomes()  # of the model of most users
    split: Outcomes = Outcomes()  # of that of a split

    def stuck_s(self, now: float) -> float:
        """How long there has been no progress."""
        if not self.beat:
            return 0.0
        silent = now - self.beat
        return silent + self.busy_s if self.busy_s else silent


class Pulses:
    """Of all processes, each in a row of its own."""

    def __init__(self, file: Path) -> None:
        """file: made by `create`."""
        with file.open("r+b") as opened:
            self._mapped = memoryview(mmap.mmap(opened.fileno(), 0))
        self._times = self._mapped.cast("d")  # [processes * fields]
        self._counts = self._mapped.cast("q")  # the same memory

    @classmethod
    def create(cls, file: Path, processes: int) -> Pulses:
        file.write_bytes(bytes(_NUMBER_BYTES * _FIELDS * processes))
        return cls(file)

    def set(self, process: int, pulse: Pulse) -> None:
        row = process * _FIELDS
        self._times[row], self._times[row + 1] = pulse.beat, pulse.busy_s
        counts = (*astuple(pulse.outcomes), *astuple(pulse.split))
        for place, count in enumerate(counts, row + 2):
            self._counts[place] = count

    def get(self, process: int) -> Pulse:
        row = process * _FIELDS
        counts = self._counts[row + 2 : row + _FIELDS].tolist()
        arms = len(counts) // _ARMS
        return Pulse(self._times[row], self._times[row + 1], Outcomes(*counts[:arms]), Outcomes(*counts[arms:]))

    def clear(self, process: int) -> None:
        """It has ended."""
        self.set(process, Pulse())
