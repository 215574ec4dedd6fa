"""`farm bench train`: samples/s of training, the share of a step that waits for its batch, and that in matrix products.

Everything is measured on the training loop's own parts: batches made in a thread, one step after another.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch.profiler import ProfilerActivity, profile

from model.config import parse_settings, split_settings
from model.datasets.logs import prepare_logs
from model.datasets.prepared import Prepared
from model.datasets.samples import shuffled_batches
from model.datasets.simulator import simulate
from model.farm import Ranker
from model.figures import claim, report
from model.tensors import TensorBatch
from model.train.distributed import Ranks
from model.train.loop import Job, epoch_batches, make_job, train_step
from model.train.negatives import rows_of_epoch
from model.train.precision import choose_device, float32_products

WAIT_BOUND = 0.1  # of a step
CLAIMED_BATCH = 5000
WARM_UP = 2  # steps
SIMULATED = {"users": 3000, "days": 6}
_PRODUCTS = ("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm")  # of backward passes too, which call the same


def run(
    data: Path | None, batch_size: int, device: str, precisions: list[str], steps: int, quick: bool
) -> dict[str, Any]:
    """Train FARM for a few steps in each precision; without data on a simulation made for it."""
    chosen = [parse_settings([f"device={device}", f"precision={precision}"]) for precision in precisions]
    with tempfile.TemporaryDirectory() as scratch:
        prepared = _simulated(Path(scratch), quick) if data is None else Prepared.open(data)
        batch_size = min(batch_size, len(prepared.rows("train")))
        settings = {"batch_size": batch_size, "device": device}
        rows = [_measure(prepared, settings | one, steps) for one in chosen]
        results = {"pipeline_ms": _pipeline_ms(prepared, batch_size, steps), "precisions": rows}
        described = {"source": prepared.info.source, "samples": len(prepared.rows("train"))}
    described |= settings | {"steps": steps, "threads": torch.get_num_threads(), "quick": quick}
    return report("train", described, results, _claims(rows, batch_size))


def _claims(rows: list[dict[str, Any]], batch_size: int) -> list[dict[str, Any]]:
    if batch_size < CLAIMED_BATCH:
        return []
    text = "{}, batch {}: share of a step that waits for its batch"
    return [claim(text.format(row["precision"], batch_size), row["wait_share"], "<=", WAIT_BOUND) for row in rows]


def _simulated(folder: Path, quick: bool) -> Prepared:
    made = simulate(folder / "logs", users=100 if quick else SIMULATED["users"], days=SIMULATED["days"], seed=0)
    return prepare_logs(folder / "logs", folder / "prepared", made.last_day)


def _measure(data: Prepared, settings: dict[str, Any], steps: int) -> dict[str, Any]:
    """One precision: medians over steps."""
    model_config, config = split_settings(settings)
    device = choose_device(config)
    torch.manual_seed(0)
    model = Ranker(model_config, data.view, config.table_std).to(device).train()
    job = make_job(data, config, model, Ranks(), device, Console(quiet=True))
    with float32_products(config):
        batches = _endless(job)
        timed = [_timed_step(job, batches) for _ in range(WARM_UP + steps)][WARM_UP:]
        products = _products_share(job, batches, max(1, steps // 4))
        batches.close()  # type: ignore[attr-defined]
    waits, times, sizes = zip(*timed, strict=True)
    return {
        "precision": config.precision,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "samples_per_s": sum(sizes) / sum(times),
        "step_ms": 1e3 * statistics.median(times),
        "wait_ms": 1e3 * statistics.median(waits),
        "wait_share": sum(waits) / sum(times),
        "products_share": products,
    }


def _endless(job: Job) -> Iterator[TensorBatch]:
    """The batches of one epoch after another, whole ones alone."""
    for epoch in itertools.count():
        for batch in epoch_batches(job, rows_of_epoch(job.data, job.config, epoch), epoch, 0):
            if batch is not None and len(batch) == job.config.batch_size:
                yield batch


def _timed_step(job: Job, batches: Iterator[TensorBatch]) -> tuple[float, float, int]:
    """Seconds that the step waited for its batch, seconds of all of it, samples."""
    start = time.perf_counter()
    batch = next(batches)
    got = time.perf_counter()
    float(train_step(job, batch))  # the loss is there when the step is, on CUDA too
    return got - start, time.perf_counter() - start, len(batch)


def _products_share(job: Job, batches: Iterator[TensorBatch], steps: int) -> float:
    """The share of matrix products in the time of all operators, forward and backward, on the device."""
    on_cuda = job.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    ready = [next(batches) for _ in range(steps)]
    with profile(activities=activities) as profiled:
        for batch in ready:
            float(train_step(job, batch))
    times = {
        event.key: event.self_device_time_total if on_cuda else event.self_cpu_time_total
        for event in profiled.key_averages()
        if not event.key.startswith("Profiler")
    }
    return float(sum(times.get(name, 0.0) for name in _PRODUCTS) / sum(times.values()))


def _pipeline_ms(data: Prepared, batch_size: int, steps: int) -> float:
    """Making a batch, with nothing else running: what a step would wait without the thread.  Median."""
    _, config = split_settings({"batch_size": batch_size})
    source = shuffled_batches(data, rows_of_epoch(data, config, 0), batch_size, np.random.default_rng(0))
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        if next(source, None) is None:
            break
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)
