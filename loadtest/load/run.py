"""`run_load`: the generator in a process of its own, so that what it costs is not the service's."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO

from loadtest.load.figures import LoadResult
from loadtest.load.trace import Trace

_START_S = 30.0  # of the generator, on a loaded machine


class LoadError(RuntimeError):
    """The generator failed, or nothing was answered."""


@dataclass(frozen=True)
class Load:
    """What to send, and how."""

    url: str  # of the route, e.g. http://127.0.0.1:8080/rank
    bodies: Path  # JSON lines, used in order, from the start again after the last
    clients: int  # connections: each asks again when it is answered; of the open loop, the most that ask at once
    seconds: float  # measured, after the warm-up
    warm_up_s: float = 1.0
    rate: float | None = None  # requests/s of Poisson arrivals (open loop); None: closed loop
    seed: int = 0  # of the arrivals
    first: int = 0  # body to begin with
    patience_s: float = 10.0  # for the last answers
    by_candidates: bool = False  # latencies by the length of the body's "candidates" too
    keep_every: int = 0  # keep the answer of every n-th request; 0: none
    headers: dict[str, str] = field(default_factory=dict)  # of every request
    trace: bool = False  # tell of every request; then a load of which nothing was answered is a result too

    def save(self, path: Path) -> None:
        path.write_text(json.dumps({**asdict(self), "bodies": str(self.bodies)}))

    @classmethod
    def load(cls, path: Path) -> Load:
        values = json.loads(path.read_text())
        return cls(**{**values, "bodies": Path(values["bodies"])})


@dataclass
class RunningLoad:
    """A generator at work."""

    load: Load
    process: subprocess.Popen[str]
    result_file: Path
    errors: IO[str]  # its stderr

    def wait_begun(self) -> None:
        """Until it sends.  LoadError with what the generator said when it ended instead."""
        assert self.process.stdout is not None
        if not self.process.stdout.readline():
            self.result()

    def stop(self) -> None:
        """Begin no more requests; what was begun is still answered."""
        self.process.send_signal(signal.SIGTERM)

    def result(self) -> LoadResult:
        """Wait for its end.  LoadError with what the generator said."""
        try:
            self.process.wait(_START_S + self.load.warm_up_s + self.load.seconds + self.load.patience_s)
        except subprocess.TimeoutExpired:
            raise LoadError("the load generator does not end") from None
        if self.process.returncode != 0:
            self.errors.seek(0)
            raise LoadError(self.errors.read().strip()[-2000:])
        found = LoadResult.from_json(json.loads(self.result_file.read_text()))
        return replace(found, trace=Trace.load(trace_file(self.result_file))) if self.load.trace else found


@contextmanager
def loading(load: Load, cpu: int | None = None) -> Iterator[RunningLoad]:
    """Send it from a process on core `cpu`, or anywhere; killed at the end if it has not ended."""
    with tempfile.TemporaryDirectory(prefix="farm-load-") as folder, tempfile.TemporaryFile("w+") as errors:
        spec, result = Path(folder) / "load.json", Path(folder) / "result.json"
        load.save(spec)
        command = [sys.executable, "-m", "loadtest.load.generator", str(spec), str(result)]
        process = subprocess.Popen(
            command if cpu is None else [*command, str(cpu)], stdout=subprocess.PIPE, stderr=errors, text=True
        )
        with process:
            try:
                yield RunningLoad(load, process, result, errors)
            finally:
                process.kill()


def run_load(load: Load, cpu: int | None = None) -> LoadResult:
    """Send it from a process on core `cpu`, or anywhere.  LoadError with what the generator said."""
    with loading(load, cpu) as running:
        return running.result()


def trace_file(result: Path) -> Path:
    """Where the generator writes the trace, beside its result."""
    return result.with_suffix(".npz")
