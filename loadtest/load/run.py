"""`run_load`: the generator in a process of its own, so that what it costs is not the service's."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from loadtest.load.figures import LoadResult

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

    def save(self, path: Path) -> None:
        path.write_text(json.dumps({**asdict(self), "bodies": str(self.bodies)}))

    @classmethod
    def load(cls, path: Path) -> Load:
        values = json.loads(path.read_text())
        return cls(**{**values, "bodies": Path(values["bodies"])})


def run_load(load: Load, cpu: int | None = None) -> LoadResult:
    """Send it from a process on core `cpu`, or anywhere.  LoadError with what the generator said."""
    with tempfile.TemporaryDirectory(prefix="farm-load-") as folder:
        spec, result = Path(folder) / "load.json", Path(folder) / "result.json"
        load.save(spec)
        command = [sys.executable, "-m", "loadtest.load.generator", str(spec), str(result)]
        try:
            done = subprocess.run(
                command if cpu is None else [*command, str(cpu)],
                capture_output=True,
                text=True,
                timeout=_START_S + load.warm_up_s + load.seconds + load.patience_s,
            )
        except subprocess.TimeoutExpired:
            raise LoadError("the load generator does not end") from None
        if done.returncode != 0:
            raise LoadError(done.stderr.strip()[-2000:])
        return LoadResult.from_json(json.loads(result.read_text()))
