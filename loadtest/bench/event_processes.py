"""The processes of `farm bench events`: workers and the sender; and the threads that ask for rankings."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from loadtest.bench.event_sender import Plan, Sent
from service.client import RankClient, RankError

START_S = 60.0  # for a process to begin, on a loaded machine
STOP_S = 20.0
_RANK_EVERY_S = 0.1  # of each asker
_ASKERS = 3  # so that one slow answer does not hide others
_CANDIDATES = 50


class ProcessFailedError(RuntimeError):
    """A process of the bench did not do its part; the end of what it wrote to stderr."""


@dataclass
class Child:
    """A running process."""

    process: subprocess.Popen[str]
    errors: IO[str]

    def written(self) -> str:
        """Its stderr so far."""
        return os.pread(self.errors.fileno(), 1 << 20, 0).decode(errors="replace")  # the offset is the child's too

    def failed(self, what: str) -> ProcessFailedError:
        return ProcessFailedError(f"{what}; status {self.process.poll()}: {self.written()[-2000:].strip()}")


@dataclass
class Worker:
    """`farm ingest --worker`, ready."""

    name: str  # of its consumer
    child: Child

    def kill(self) -> None:
        """kill -9."""
        self.child.process.kill()
        self.child.process.wait()

    def signal(self, number: signal.Signals) -> None:
        self.child.process.send_signal(number)


@contextmanager
def running(*words: str, environment: Mapping[str, str]) -> Iterator[Child]:
    """A Python process; killed at the end if it has not ended on SIGTERM."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", *words],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **environment},
        )
        try:
            yield Child(process, errors)
        finally:
            _end(process)


@contextmanager
def running_worker(url: str, environment: Mapping[str, str]) -> Iterator[Worker]:
    """A worker of the store at `url`."""
    with running("farm", "ingest", "--store", url, "--worker", environment=environment) as child:
        yield Worker(_worker_name(child), child)


@contextmanager
def running_sender(plan: Plan, folder: Path, environment: Mapping[str, str]) -> Iterator[Sender]:
    """A sender that has begun."""
    plan_file, result_file = folder / "plan.json", folder / "sent.json"
    plan.save(plan_file)
    words = ("loadtest.bench.event_sender", str(plan_file), str(result_file))
    with running(*words, environment=environment) as child:
        assert child.process.stdout is not None
        if not child.process.stdout.readline():
            raise child.failed("the sender did not begin")
        yield Sender(child, plan, result_file)


@dataclass
class Sender:
    """The process that sends events."""

    child: Child
    plan: Plan
    result: Path

    def finish(self) -> Sent:
        """Begin no more requests, and wait until all that were begun are taken.  ProcessFailedError when it fails."""
        self.child.process.terminate()
        try:
            self.child.process.wait(self.plan.patience_s + STOP_S)
        except subprocess.TimeoutExpired:
            raise self.child.failed("the sender does not end") from None
        if self.child.process.returncode != 0:
            raise self.child.failed("the sender failed")
        return Sent.load(self.result)


@dataclass
class Asked:
    """What became of requests for rankings."""

    answers: int = 0
    degraded: int = 0  # of the answers
    failures: list[str] = field(default_factory=list)
    slowest_s: float = 0.0

    @property
    def share(self) -> float | None:
        """Of answers in all requests."""
        asked = self.answers + len(self.failures)
        return self.answers / asked if asked else None


@contextmanager
def asking(url: str, users: Sequence[int], authors: Sequence[int]) -> Iterator[Asked]:
    """Somebody asks the service at `url` for rankings all the while; the figures are whole at the end."""
    stop, lock, asked = threading.Event(), threading.Lock(), Asked()

    def ask(seed: int) -> None:
        drawn = random.Random(seed)
        with RankClient(url, retries=0) as client:  # each failure counts
            while not stop.wait(_RANK_EVERY_S):
                candidates = drawn.sample(authors, min(_CANDIDATES, len(authors)))
                _ask(client, drawn.choice(users), candidates, asked, lock)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(_ASKERS)]
    for thread in threads:
        thread.start()
    try:
        yield asked
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _ask(client: RankClient, user: int, candidates: list[int], asked: Asked, lock: threading.Lock) -> None:
    start = time.monotonic()
    try:
        degraded, failure = bool(client.rank(user, list(candidates)).degraded), None
    except RankError as error:
        degraded, failure = False, str(error)
    with lock:
        asked.slowest_s = max(asked.slowest_s, time.monotonic() - start)
        if failure is not None:
            asked.failures.append(failure)
        else:
            asked.answers, asked.degraded = asked.answers + 1, asked.degraded + degraded


def _worker_name(child: Child) -> str:
    """Of the consumer, as the worker says when it begins."""
    ends = time.monotonic() + START_S
    while time.monotonic() < ends and child.process.poll() is None:
        for line in child.written().splitlines():
            if line.startswith("worker ") and " merges the log" in line:
                return line.split()[1]
        time.sleep(0.05)
    raise child.failed("the worker did not begin")


def _end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGCONT)  # a stopped one would not hear the next
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
