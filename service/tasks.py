"""What the parent tells the processes that it starts, and what they tell it."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from service.settings import Settings


@dataclass(frozen=True)
class EngineProcesses:
    """Those that run the towers for the workers."""

    sockets: tuple[Path, ...]
    provider: str  # in use


@dataclass(frozen=True)
class Task:
    """What a worker is started with."""

    settings: Settings
    number: int  # from 0
    listener: socket.socket  # bound, the same of all workers
    loads: Path  # of all workers' connections
    engines: EngineProcesses | None  # None: the worker runs the towers


@dataclass(frozen=True)
class EngineTask:
    """What an engine process is started with."""

    settings: Settings
    number: int  # its place in settings.devices
    socket: Path  # to listen on


@dataclass(frozen=True)
class News:
    """What a process tells once: why it cannot start, or that it is ready."""

    failure: str | None = None
    model_version: str = ""
    provider: str = ""  # in use, of an engine process
