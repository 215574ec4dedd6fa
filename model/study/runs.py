"""The runs of a study: each variant with each seed, in worker processes, none of them twice.

A run folder holds what `train` writes, and job.json (settings and data, written first), test.npy (probabilities of the
test samples) and done.json (written last).  A folder whose job.json is another job's is made anew.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.datasets.prepared import Prepared
from model.evaluate import predict
from model.train import Run, load_model, train

Progress = Callable[[str], None]
Settings = dict[str, Any]

_LOOK_S = 0.5  # between looks for Ctrl-C


class StudyError(ValueError):
    """A run failed, or the folder is no study's."""


@dataclass(frozen=True)
class Job:
    """One run: what it is made of, and where it goes."""

    name: str  # "farm, seed 0"
    folder: Path
    data: Path
    settings: Settings  # all of them, the seed too
    fingerprint: str  # of the data

    def record(self) -> dict[str, Any]:
        return {"settings": self.settings, "data": self.fingerprint}

    def done(self) -> bool:
        """Whether the folder holds this very job, finished."""
        whole = all((self.folder / name).is_file() for name in ("run.json", "model.pt", "test.npy", "done.json"))
        return whole and _read(self.folder / "job.json") == self.record()


def run_all(jobs: list[Job], workers: int, progress: Progress) -> None:
    """Do the jobs that are not done, `workers` at once.

    StudyError when some failed, after all others are done.  However this process ends, its workers end with it.
    """
    waiting = [job for job in jobs if not job.done()]
    if len(waiting) < len(jobs):
        progress(f"{len(jobs) - len(waiting)} of {len(jobs)} runs are done already")
    if not waiting:
        return
    spawn = multiprocessing.get_context("spawn")
    reader, writer = spawn.Pipe(duplex=False)  # a worker that finds the writer's end closed ends itself
    workers = min(workers, len(waiting))
    with ProcessPoolExecutor(workers, spawn, _start_worker, (reader, max(1, _cores() // workers))) as pool:
        try:
            with _interrupts_held():  # the workers that start here never get any: Ctrl-C is this process's to answer
                futures = {pool.submit(run_job, job): job for job in waiting}
            failed = _collect(futures, progress)
        except BaseException as stopped:
            if isinstance(stopped, KeyboardInterrupt):
                progress("stopping; the same command goes on where this one was")
            writer.close()
            pool.shutdown(cancel_futures=True)
            raise
    if failed:
        raise StudyError(f"{len(failed)} of {len(jobs)} runs failed; the others are kept. {'; '.join(failed)}")


def run_job(job: Job) -> str | None:
    """Train and predict, in a worker; what went wrong, in one line, or None."""
    try:
        _run(job)
    except Exception as error:  # whatever it is, the other runs go on, and the parent names this one
        job.folder.mkdir(parents=True, exist_ok=True)
        (job.folder / "error.txt").write_text(traceback.format_exc())
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None


def _run(job: Job) -> None:
    if _read(job.folder / "job.json") != job.record():
        shutil.rmtree(job.folder, ignore_errors=True)
        job.folder.mkdir(parents=True)
        _write(job.folder / "job.json", job.record())
    start = time.perf_counter()
    data = Prepared.open(job.data)
    if not _trained(job.folder):
        train(data, job.folder, job.settings, quiet=True)
    run, model = load_model(job.folder)
    with (job.folder / "test.tmp").open("wb") as file:
        np.save(file, predict(model, data, data.rows("test")).astype(np.float32))
    os.replace(job.folder / "test.tmp", job.folder / "test.npy")
    (job.folder / "error.txt").unlink(missing_ok=True)
    done = {"seconds": time.perf_counter() - start, "epochs": len(run.epochs), "best_epoch": run.best_epoch}
    _write(job.folder / "done.json", done)


def _trained(folder: Path) -> bool:
    return (folder / "model.pt").is_file() and (folder / "run.json").is_file() and Run.load(folder).finished


def _collect(futures: dict[Future[str | None], Job], progress: Progress) -> list[str]:
    """Wait for all; the failures, one line each."""
    start, failed = time.monotonic(), []
    for count, future in enumerate(_finished(set(futures)), 1):
        job = futures[future]
        try:
            error = future.result()
        except BrokenProcessPool:
            message = (
                "a worker was killed, perhaps for want of memory; the same command goes on, fewer --jobs need less"
            )
            raise StudyError(message) from None
        if error is not None:
            failed.append(f"{job.name}: {error} ({job.folder / 'error.txt'})")
        left = (time.monotonic() - start) / count * (len(futures) - count)
        state = "done" if error is None else f"failed: {error}"
        progress(f"{count} of {len(futures)} runs: {job.name} {state}; about {left / 60:.0f} min left")
    return failed


def _finished(waiting: set[Future[str | None]]) -> Iterator[Future[str | None]]:
    """Futures as they finish.  Not as_completed: polars' handler of SIGINT makes an endless wait go on after Ctrl-C."""
    while waiting:
        finished, waiting = wait(waiting, _LOOK_S, FIRST_COMPLETED)
        yield from finished


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """SIGINT waits until the end of the block; processes that start in it keep it waiting for good."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(parent: Connection, threads: int) -> None:
    """When the parent ends, by whatever, so does this worker."""
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Connection) -> None:
    try:
        parent.recv()  # nothing is ever sent
    except (EOFError, OSError):
        os._exit(1)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _read(path: Path) -> Any:
    """The JSON of a file; None when there is none, or half of one."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _write(path: Path, record: Any) -> None:
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(scratch, path)
