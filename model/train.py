"""Training: the loss of Eq. 7 + 14 + 15, Adam, the epoch chosen on the validation day, checkpoints.

A run folder holds run.json (settings, view, what happened), model.pt (weights of the chosen epoch) and checkpoint.pt
(everything to go on from the last finished epoch).  Every epoch draws from (seed, epoch), so a run that was stopped and
started again is the run that was not.
Letters: B samples, T tasks.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch.nn import functional

from feature_store.schema import RecordSchema
from feature_store.view import ModelView
from model.align import align_loss
from model.config import TrainConfig, split_settings
from model.datasets.prepared import Prepared
from model.datasets.samples import Batch, shuffled_batches
from model.evaluate import as_json, batch_logits, measure, predict
from model.farm import Ranker

Settings = dict[str, Any]


class RunError(ValueError):
    """The folder holds no finished run, or one of something else."""


@dataclass
class Run:
    """What a run folder says of itself."""

    settings: Settings
    view: ModelView
    schema: RecordSchema
    source: str
    data_span: dict[str, int]  # ms of the first and last training sample
    epochs: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = -1
    finished: bool = False

    def save(self, folder: Path) -> None:
        _write_atomic(folder / "run.json", self.as_json().encode() + b"\n")

    def as_json(self) -> str:
        record = vars(self) | {"view": self.view.model_dump(), "schema": self.schema.model_dump()}
        return json.dumps(record, indent=1)

    @classmethod
    def load(cls, folder: str | Path) -> Run:
        path = Path(folder) / "run.json"
        if not path.is_file():
            raise RunError(f"{folder}: no run.json; make the run with `farm train`")
        return cls.from_json(path.read_text())

    @classmethod
    def from_json(cls, text: str) -> Run:
        record = json.loads(text)
        record["view"] = ModelView.model_validate(record["view"])
        record["schema"] = RecordSchema.model_validate(record["schema"])
        return cls(**record)


def load_model(folder: str | Path) -> tuple[Run, Ranker]:
    """The run and its model at the chosen epoch, ready to predict; RunError when there is none."""
    run = Run.load(folder)
    weights = Path(folder) / "model.pt"
    if not weights.is_file():
        raise RunError(f"{folder}: no model.pt; the run stopped before its first epoch ended, train it again")
    config, _ = split_settings(run.settings)
    model = Ranker(config, run.view)
    model.load_state_dict(torch.load(weights, weights_only=True))
    return run, model.eval()


def require_view(run: Run, data: Prepared) -> None:
    """RunError when the data is not what the run was trained on: its model reads other columns."""
    if run.view != data.view:
        raise RunError(f"{data.path}: its model view is not the run's; evaluate on data prepared as the run's was")


def total_loss(model: Ranker, batch: Batch) -> torch.Tensor:
    """L = L_XTRs + lambda L_cl (Eq. 15).  A label that is not known takes no part in L_XTRs."""
    logits, preferences = batch_logits(model, batch)
    labels, known = torch.from_numpy(batch.labels), torch.from_numpy(batch.known)
    loss = xtr_loss(logits, labels, known)
    if preferences is None:
        return loss
    config = model.config
    contrast = align_loss(
        preferences.live.detach() if config.align_detach else preferences.live,
        preferences.video,
        torch.from_numpy(batch.user_rows),
        preferences.takes_part,
        config.temperature,
        config.align_normalise,
    )
    return loss + config.align_weight * contrast


def xtr_loss(logits: torch.Tensor, labels: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood (Eq. 7): summed over tasks, each the mean over its known labels.  [B, T] each"""
    losses = functional.binary_cross_entropy_with_logits(logits.float(), labels, reduction="none") * known
    return (losses.sum(0) / known.sum(0).clamp(min=1)).sum()


def train(data: Prepared, out: str | Path, settings: Settings, quiet: bool = False) -> Run:
    """Train on the training days, choose the epoch on the validation day, write the run folder.

    settings: fields of ModelConfig and TrainConfig; what is not given comes from PREPARED's recommendation.
    A folder with an unfinished run of the same settings is gone on with.
    """
    model_config, config = split_settings({**data.info.training, **settings})
    merged: Settings = {**vars(model_config), **vars(config)}  # all of them: a default may change, this run's may not
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    model = Ranker(model_config, data.view, config.table_std)
    optimiser = _optimiser(model, config)
    run = _resume(folder, merged, model, optimiser) or _new_run(data, merged)
    console = Console(stderr=True, quiet=quiet)
    for epoch in range(len(run.epochs), config.epochs):
        if _stopped(run, config):
            break
        run.epochs.append(_epoch(model, optimiser, data, config, epoch, console))
        _after_epoch(run, folder, model, optimiser, config)
    run.finished = True
    run.save(folder)
    return run


def _new_run(data: Prepared, settings: Settings) -> Run:
    times = data.samples["request_time"][data.rows("train")]
    if len(times) == 0:
        raise RunError(f"{data.path}: no training samples before the validation day; choose a later --test-from")
    span = {"first_ms": int(times[0]), "last_ms": int(times[-1])}
    return Run(settings, data.view, data.schema, data.info.source, span)


def _optimiser(model: Ranker, config: TrainConfig) -> torch.optim.Optimizer:
    tables = list(model.tables.parameters())
    ids = {id(p) for p in tables}
    dense = [p for p in model.parameters() if id(p) not in ids]
    groups = [
        {"params": dense, "weight_decay": config.weight_decay},
        {"params": tables, "weight_decay": config.table_weight_decay},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


def _epoch(
    model: Ranker, optimiser: torch.optim.Optimizer, data: Prepared, config: TrainConfig, epoch: int, console: Console
) -> dict[str, Any]:
    """One pass over the training days, then the validation figures."""
    rows = data.rows("train")
    loss, seconds = _pass(model, optimiser, data, rows, config, epoch, console)
    valid = as_json(measure(data, data.rows("valid"), predict(model, data, data.rows("valid"))))
    record = {
        "loss": loss,
        "seconds": seconds,
        "samples_per_s": len(rows) / seconds,
        "valid": valid["tasks"],
    }
    first = data.view.tasks[0]
    console.print(
        f"epoch {epoch}: loss {record['loss']:.4f}, {record['samples_per_s']:,.0f} samples/s, "
        f"validation {first} AUC {_figure(valid, first, 'auc')}, GAUC {_figure(valid, first, 'gauc')}"
    )
    return record


def _pass(
    model: Ranker,
    optimiser: torch.optim.Optimizer,
    data: Prepared,
    rows: np.ndarray,
    config: TrainConfig,
    epoch: int,
    console: Console,
) -> tuple[float, float]:
    """One pass over `rows`: mean loss, seconds."""
    torch.manual_seed(config.seed * 100_003 + epoch)
    rng = np.random.default_rng((config.seed, epoch))
    model.train()
    start, total = time.perf_counter(), 0.0
    for batch in _with_progress(shuffled_batches(data, rows, config.batch_size, rng), len(rows), epoch, console):
        optimiser.zero_grad(set_to_none=True)
        loss = total_loss(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        total += loss.item() * len(batch.labels)
    return total / len(rows), time.perf_counter() - start


def _figure(metrics: dict[str, Any], task: str, name: str) -> str:
    value = metrics["tasks"][task][name]
    return "-" if value is None else f"{value:.4f}"


def _with_progress(source: Iterator[Batch], total: int, epoch: int, console: Console) -> Iterator[Batch]:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(f"epoch {epoch}", total=total, rate="")
        start = time.perf_counter()
        for batch in source:
            yield batch
            progress.advance(task, len(batch.labels))
            done = progress.tasks[task].completed
            progress.update(task, rate=f"{done / (time.perf_counter() - start):,.0f} samples/s")


def _after_epoch(run: Run, folder: Path, model: Ranker, optimiser: torch.optim.Optimizer, config: TrainConfig) -> None:
    """Keep the weights if the epoch is the best so far, then write the checkpoint, which alone is gone on from."""
    best = _best(run, config)
    if best == len(run.epochs) - 1:
        run.best_epoch = best
        _save_tensors(model.state_dict(), folder / "model.pt")
    state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "run": run.as_json()}
    _save_tensors(state, folder / "checkpoint.pt")
    run.save(folder)


def _best(run: Run, config: TrainConfig) -> int:
    return int(np.argmax([_score(epoch, config.stop_on, run.view.tasks[0]) for epoch in run.epochs]))


def _stopped(run: Run, config: TrainConfig) -> bool:
    return bool(run.epochs) and len(run.epochs) - 1 - _best(run, config) >= config.patience


def _score(epoch: dict[str, Any], stop_on: str, task: str) -> float:
    """The validation figure that chooses the epoch; minus the loss when the validation day cannot say."""
    values = [epoch["valid"][task].get(name) for name in stop_on.split("+")]
    if any(value is None for value in values):
        return -float(epoch["loss"])
    return float(np.mean(values))


def _resume(folder: Path, settings: Settings, model: Ranker, optimiser: torch.optim.Optimizer) -> Run | None:
    """The unfinished run of the same settings in the folder, its state loaded; None when there is none."""
    checkpoint = folder / "checkpoint.pt"
    if not (folder / "run.json").is_file() or not checkpoint.is_file():
        return None
    state = torch.load(checkpoint, weights_only=True)
    run = Run.from_json(state["run"])  # run.json may be one epoch behind
    if Run.load(folder).finished or run.settings != settings or run.view != model.view:
        return None
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    return run


def _save_tensors(state: Any, path: Path) -> None:
    scratch = path.with_suffix(".tmp")
    torch.save(state, scratch)
    os.replace(scratch, path)


def _write_atomic(path: Path, content: bytes) -> None:
    scratch = path.with_suffix(".tmp")
    scratch.write_bytes(content)
    os.replace(scratch, path)
