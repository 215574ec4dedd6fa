"""The training loop: epochs over the training days, each followed by the validation day and a checkpoint.

Every epoch draws from (seed, epoch), so a run that was stopped and started again is the run that was not.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from model.artifact.manifest import CALIBRATION
from model.calibrate import fit_calibration
from model.config import TrainConfig, split_settings
from model.datasets.prepared import Prepared
from model.datasets.samples import shuffled_batches
from model.evaluate import as_json, measure, predict
from model.farm import Ranker
from model.tensors import TensorBatch, Towers, logits, to_tensors
from model.train.checkpoint import Place, resume, save_checkpoint, save_tensors
from model.train.distributed import Ranks, average_gradients, process_group, ranks_of_environment
from model.train.loss import combined_loss
from model.train.negatives import calibration_rate, negative_weight, rows_of_epoch
from model.train.optimiser import Optimisers
from model.train.precision import autocast, choose_device, float32_products
from model.train.prefetch import prefetch
from model.train.run import MODEL, Run, Settings, begin, best_epoch, has_stopped, new_run
from model.train.tables import with_table_rows

_RANK_STRIDE = 1_000_000_007  # between the seeds of the ranks' dropouts


@dataclass
class Job:
    """What the steps of a training work on."""

    data: Prepared
    config: TrainConfig
    model: Ranker
    towers: Towers
    optimisers: Optimisers
    ranks: Ranks
    device: torch.device
    console: Console


def train(data: Prepared, out: str | Path, settings: Settings, quiet: bool = False) -> Run:
    """Train on the training days, choose the epoch on the validation day, write the run folder.

    settings: fields of ModelConfig and TrainConfig; what is not given comes from PREPARED's recommendation.
    A folder with an unfinished run of the same settings and data is gone on with; any other run in it is replaced.
    Under torchrun, every process calls it with the same arguments and gets the same run; the first one writes.
    """
    model_config, config = split_settings({**data.info.training, **settings})
    merged: Settings = {**vars(model_config), **vars(config)}  # all of them: a default may change, this run's may not
    ranks = ranks_of_environment()
    device = choose_device(config, ranks.local_rank)
    view = with_table_rows(data.view, config.table_rows)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    model = Ranker(model_config, view, config.table_std).to(device)
    job = make_job(data, config, model, ranks, device, Console(stderr=True, quiet=quiet or not ranks.first))
    with process_group(ranks, device), float32_products(config):
        stopped = resume(folder, data, merged, model, job.optimisers, ranks)
        run, place = stopped or (new_run(data, view, merged), Place())
        if stopped is None and ranks.first:  # the others have looked into the folder: resume waits for all
            begin(folder, run)
        _epochs(job, run, place, folder)
        ranks.barrier()
    return run


def make_job(
    data: Prepared, config: TrainConfig, model: Ranker, ranks: Ranks, device: torch.device, console: Console
) -> Job:
    towers = Towers.of(model, compiled=config.compile)
    return Job(data, config, model, towers, Optimisers(model, config), ranks, device, console)


def _epochs(job: Job, run: Run, place: Place, folder: Path) -> None:
    for epoch in range(len(run.epochs), job.config.epochs):
        if has_stopped(run, job.config):
            break
        _pass(job, epoch, place, partial(save_checkpoint, folder, run, job.model, job.optimisers))
        record, scores = _finish_epoch(job, epoch, place)
        run.epochs.append(record)
        _after_epoch(job, run, folder, scores)
        place = Place()
    run.finished = True
    if job.ranks.first:
        run.save(folder)


def _pass(job: Job, epoch: int, place: Place, checkpoint: Any) -> None:
    """The rest of an epoch from `place` on, which moves along."""
    config, ranks = job.config, job.ranks
    torch.manual_seed(config.seed * 100_003 + epoch + _RANK_STRIDE * ranks.rank)
    if place.random:
        place.give_random()
    job.model.train()
    rows = rows_of_epoch(job.data, config, epoch)
    start, before = time.perf_counter(), place.seconds
    loss_sum = torch.tensor(place.loss_sum, dtype=torch.float64, device=job.device)
    for batch in _with_progress(epoch_batches(job, rows, epoch, place.step), len(rows), place, epoch, job):
        loss_sum += train_step(job, batch)
        place.step += 1
        place.samples += 0 if batch is None else len(batch)
        if config.checkpoint_every and place.step % config.checkpoint_every == 0:
            place.loss_sum, place.seconds = float(loss_sum), before + time.perf_counter() - start
            place.take_random()
            checkpoint(place, ranks)
    place.loss_sum, place.seconds = float(loss_sum), before + time.perf_counter() - start


def train_step(job: Job, batch: TensorBatch | None) -> torch.Tensor:
    """One step of all ranks; None for one that has no batch left.  Returns the loss times the number of samples."""
    optimisers = job.optimisers
    optimisers.zero_grad()
    loss_sum, samples = torch.zeros((), dtype=torch.float64, device=job.device), 0
    if batch is not None:
        batch, samples = batch.to(job.device), len(batch)
        with autocast(job.config, job.device):
            scores, preferences = logits(job.towers, batch)
        loss = combined_loss(job.model.config, batch, scores, preferences, negative_weight(job.config))
        loss.backward()  # type: ignore[no-untyped-call]
        loss_sum = loss.detach().double() * samples
    average_gradients(optimisers.dense, optimisers.sparse, samples, job.ranks)
    optimisers.step()
    return loss_sum


def epoch_batches(job: Job, rows: np.ndarray, epoch: int, done: int) -> Iterator[TensorBatch | None]:
    """This rank's batches of an epoch after the first `done`: as many on every rank, the last perhaps None."""
    config, ranks = job.config, job.ranks
    rng = np.random.default_rng((config.seed, epoch))
    arrays = shuffled_batches(job.data, rows, config.batch_size, rng, ranks.rank, ranks.world, done)
    pinned = job.device.type == "cuda"  # so that the copy to the device does not hold up the host
    tensors = (to_tensors(batch) for batch in arrays)
    source = prefetch(batch.map(torch.Tensor.pin_memory) if pinned else batch for batch in tensors)
    steps = -(-len(rows) // (config.batch_size * ranks.world))
    for _ in range(done, steps):
        yield next(source, None)


def _finish_epoch(job: Job, epoch: int, place: Place) -> tuple[dict[str, Any], np.ndarray]:
    """The epoch's record, the same on all ranks, and the probabilities of the validation rows [N, T]."""
    data, ranks = job.data, job.ranks
    losses, samples, seconds = zip(*ranks.gather((place.loss_sum, place.samples, place.seconds)), strict=True)
    rows = data.rows("valid")
    scores = np.concatenate(ranks.gather(predict(job.model, data, np.array_split(rows, ranks.world)[ranks.rank])))
    valid = as_json(measure(data, rows, scores))
    record = {
        "loss": sum(losses) / sum(samples),
        "seconds": max(seconds),
        "samples_per_s": sum(samples) / max(seconds),
        "valid": valid["tasks"],
    }
    first = data.view.tasks[0]
    job.console.print(
        f"epoch {epoch}: loss {record['loss']:.4f}, {record['samples_per_s']:,.0f} samples/s, "
        f"validation {first} AUC {_figure(valid, first, 'auc')}, GAUC {_figure(valid, first, 'gauc')}"
    )
    return record, scores


def _figure(metrics: dict[str, Any], task: str, name: str) -> str:
    value = metrics["tasks"][task][name]
    return "-" if value is None else f"{value:.4f}"


def _after_epoch(job: Job, run: Run, folder: Path, scores: np.ndarray) -> None:
    """Keep weights and calibration of the best epoch so far, then write the checkpoint, which alone is gone on from."""
    best = best_epoch(run, job.config)
    is_best = best == len(run.epochs) - 1
    run.best_epoch = best
    if is_best and job.ranks.first:
        save_tensors(job.model.state_dict(), folder / MODEL)
        labels = np.maximum(job.data.samples["labels"][job.data.rows("valid")], -1)
        fitted = fit_calibration(run.view.tasks, scores, labels, calibration_rate(job.config))
        fitted.save(folder / CALIBRATION)
    save_checkpoint(folder, run, job.model, job.optimisers, Place(), job.ranks)
    if job.ranks.first:
        run.save(folder)


def _with_progress(
    source: Iterator[TensorBatch | None], total: int, place: Place, epoch: int, job: Job
) -> Iterator[TensorBatch | None]:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    with Progress(*columns, console=job.console, transient=True) as progress:
        done = place.samples * job.ranks.world
        task = progress.add_task(f"epoch {epoch}", total=total, completed=done, rate="")
        start, count = time.perf_counter(), 0
        for batch in source:
            yield batch
            count += 0 if batch is None else len(batch) * job.ranks.world
            progress.update(
                task, completed=done + count, rate=f"{count / (time.perf_counter() - start):,.0f} samples/s"
            )
