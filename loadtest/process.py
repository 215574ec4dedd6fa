"""The service as a process, for benchmarks and tests: `farm serve` on a free loopback port."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any
from urllib.request import urlopen

PATIENT = {
    "FARM_QUEUE_MS": "60000",
    "FARM_BURST_MS": "60000",
    "FARM_QUEUE_TILES": "1000000",
    "FARM_DEADLINE_MS": "60000",
}
"""Environment of a service that refuses nobody: of closed loops, whose clients wait for their answers."""

_READY = re.compile(r"ready on (http://[^\s,]+).* admin on (http://\S+)")


class ServiceFailedError(RuntimeError):
    """The service ended before it was ready, or did not become ready in time."""

    def __init__(self, status: int | None, errors: str) -> None:
        """status: its exit status, None when it had to be killed."""
        super().__init__(f"farm serve: exit status {status}: {errors.strip()}")
        self.status, self.errors = status, errors


@dataclass
class ServiceProcess:
    """A running service."""

    url: str
    admin_url: str
    process: subprocess.Popen[str]
    errors: IO[str]  # its stderr

    def workers(self) -> list[dict[str, Any]]:
        """Each worker's pid, state, restarts and model version, as the admin port tells."""
        with urlopen(f"{self.admin_url}/workers", timeout=30.0) as answer:
            found: list[dict[str, Any]] = json.load(answer)
        return found

    def stop(self, timeout_s: float = 30.0) -> int:
        """SIGTERM, then its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)


@contextmanager
def running_service(
    artifact: Path,
    store: str,
    *options: str,
    ready_within_s: float = 120.0,
    cpus: set[int] | None = None,
    **environment: str,
) -> Iterator[ServiceProcess]:
    """`farm serve` with these options, ready; stopped at the end.  ServiceFailedError with what it wrote to stderr.

    cpus: the only ones that it runs on, all its processes; Linux.
    """
    command = [sys.executable, "-m", "farm", "serve", "--artifact", str(artifact), "--store", store]
    ports = ["--port", "0", "--admin-port", "0"]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [*command, *ports, *options],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={"FARM_GRACE_S": "0", **os.environ, **environment},
            preexec_fn=None if cpus is None else partial(os.sched_setaffinity, 0, cpus),
        )
        try:
            url, admin_url = _wait_until_ready(process, errors, ready_within_s)
            yield ServiceProcess(url, admin_url, process, errors)
        finally:
            _end(process)


def _wait_until_ready(process: subprocess.Popen[str], errors: IO[str], within_s: float) -> tuple[str, str]:
    """The URLs that the service prints when it is ready."""
    assert process.stdout is not None
    clock = threading.Timer(within_s, process.kill)
    clock.start()
    try:
        for line in process.stdout:
            if found := _READY.search(line):
                return found[1], found[2]
        status = process.wait()
    finally:
        clock.cancel()
    errors.seek(0)
    raise ServiceFailedError(None if status == -signal.SIGKILL else status, errors.read())


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(30.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
