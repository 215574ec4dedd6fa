"""What the parent tells the processes that it starts, and what they tell it."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from pathlib import Path

from model.artifact.formula import Formula
from service.lifecycle.settings import LifecycleSettings
from service.settings import Settings

_HASH_DIGITS = 8  # the last of a version: the name of a socket may not be long


@dataclass(frozen=True)
class LocalModel:
    """An artifact on this machine."""

    version: str  # empty: whatever it is
    path: Path


@dataclass(frozen=True)
class SplitOrder:
    """Another model for a share of the users."""

    model: LocalModel
    share: float
    salt: str


@dataclass(frozen=True)
class ShadowOrder:
    """A candidate that scores a share of the requests again."""

    model: LocalModel
    share: float


@dataclass(frozen=True)
class Order:
    """What shall serve."""

    model: LocalModel
    number: int = 0  # grows with each change that this service makes or tries
    formula: Formula = field(default_factory=Formula)
    split: SplitOrder | None = None
    shadow: ShadowOrder | None = None

    @property
    def models(self) -> dict[str, LocalModel]:
        """All that must be loaded, by version."""
        parts = [part.model for part in (self.split, self.shadow) if part is not None]
        return {model.version: model for model in (self.model, *parts)}


@dataclass(frozen=True)
class EngineProcesses:
    """Those that run the towers for the workers."""

    folder: Path  # of their sockets
    count: int
    provider: str  # in use

    def sockets(self, version: str) -> tuple[Path, ...]:
        """Of each, for one model."""
        return tuple(engine_socket(self.folder, number, version) for number in range(self.count))


def engine_socket(folder: Path, number: int, version: str) -> Path:
    """Where an engine process listens for requests to one model."""
    return folder / f"engine-{number}-{version[-_HASH_DIGITS:]}"


@dataclass(frozen=True)
class Task:
    """What a worker is started with."""

    settings: Settings
    lifecycle: LifecycleSettings
    number: int  # from 0
    listener: socket.socket  # bound, the same of all workers
    loads: Path  # of all workers' connections
    pulses: Path  # of all processes' progress
    order: Order
    engines: EngineProcesses | None  # None: the worker runs the towers


@dataclass(frozen=True)
class EngineTask:
    """What an engine process is started with."""

    settings: Settings
    lifecycle: LifecycleSettings
    number: int  # its place in settings.devices
    folder: Path  # for its sockets
    pulses: Path  # of all processes' progress
    row: int  # of them, its own
    order: Order


@dataclass(frozen=True)
class News:
    """What a process tells first: why it cannot start, or that it is ready."""

    failure: str | None = None
    model_version: str = ""
    provider: str = ""  # in use, of an engine process


@dataclass(frozen=True)
class Prepare:
    """Load it beside what serves, check it, warm it up.  Answered with Prepared."""

    order: Order


@dataclass(frozen=True)
class Prepared:
    number: int
    failure: str | None = None


@dataclass(frozen=True)
class Switch:
    """From the next request on it answers.  Answered with Switched when the old has no request left."""

    number: int


@dataclass(frozen=True)
class Switched:
    number: int
    model_version: str


@dataclass(frozen=True)
class Cancel:
    """Forget what was prepared."""

    number: int


Told = Prepare | Switch | Cancel
"""What the parent tells a process that is ready."""

Heard = Prepared | Switched
"""What such a process tells the parent."""
