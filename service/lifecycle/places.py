"""Where the parent's processes stand: each place has a process, or waits for the next."""

from __future__ import annotations

import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Literal

from service.tasks import Heard, News, Switched, Told

Role = Literal["engine", "worker"]

_JOIN_S = 5.0


@dataclass(frozen=True)
class Backoff:
    """How long a worker's place stays empty after its worker ended."""

    first_s: float = 1.0  # so that a worker that dies at once does not keep the machine busy
    most_s: float = 30.0
    calm_s: float = 60.0  # a worker that was ready for as long has begun anew

    def pause_s(self, ends: int) -> float:
        """ends: in a row, 1 or more."""
        return float(min(self.first_s * 2 ** min(ends - 1, 30), self.most_s))

    def ends(self, before: int, ready_s: float) -> int:
        """In a row, with this one, of a worker that was ready for `ready_s`."""
        return 1 if ready_s >= self.calm_s else before + 1


@dataclass(eq=False)
class Place:
    """A process, and those that stood in its place before."""

    role: Role
    number: int  # of its role, from 0
    process: BaseProcess | None = None  # None: it has ended, another is started at `due`
    link: Connection | None = None  # to it; None: it has closed its end
    ready_at: float | None = None  # time.monotonic()
    model_version: str = ""
    provider: str = ""  # in use, of an engine process
    failure: str | None = None
    ends: int = 0  # in a row
    restarts: int = 0
    due: float = 0.0  # time.monotonic()

    def start(self, process: BaseProcess, link: Connection) -> None:
        self.process, self.link, self.failure, self.ready_at = process, link, None, None

    def hear(self) -> News | Heard | None:
        """What it tells; the end of it before it was ready is news too; None when there is nothing more to hear."""
        assert self.link is not None
        try:
            told: News | Heard = self.link.recv()
        except (EOFError, OSError):
            self.link.close()
            self.link = None
            if self.ready_at is not None or self.failure:
                return None
            told = News(self._early_end())
        if isinstance(told, News):
            self.failure, self.model_version, self.provider = told.failure, told.model_version, told.provider
            self.ready_at = None if told.failure else time.monotonic()
        elif isinstance(told, Switched):
            self.model_version = told.model_version
        return told

    def tell(self, message: Told) -> None:
        """Whoever has ended hears nothing."""
        try:
            if self.link is not None:
                self.link.send(message)
        except OSError:
            pass

    def clear(self, ends: int, due: float) -> None:
        """Its process has ended; another is started at `due`."""
        if self.link is not None:
            self.link.close()
        self.ends, self.due, self.restarts = ends, due, self.restarts + 1
        self.process, self.link, self.ready_at = None, None, None

    def _early_end(self) -> str:
        assert self.process is not None
        self.process.join(_JOIN_S)
        return f"a process ({self.role}) ended with {self.process.exitcode} before it was ready"
