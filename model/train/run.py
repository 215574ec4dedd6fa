"""A run folder: what it says of itself, its model, and which of its epochs is the best."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from feature_store.schema import RecordSchema
from feature_store.view import PARTS, ModelView
from model.artifact.manifest import CALIBRATION
from model.config import TrainConfig, split_settings
from model.datasets.prepared import Prepared
from model.farm import Ranker

RUN, MODEL, CHECKPOINT = "run.json", "model.pt", "checkpoint.pt"
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
    data: str = ""  # the digest of PREPARED; "" of a run or of data from before there was one

    def save(self, folder: Path) -> None:
        write_atomic(folder / RUN, self.as_json().encode() + b"\n")

    def as_json(self) -> str:
        record = vars(self) | {"view": self.view.model_dump(), "schema": self.schema.model_dump()}
        return json.dumps(record, indent=1)

    @classmethod
    def load(cls, folder: str | Path) -> Run:
        path = Path(folder) / RUN
        if not path.is_file():
            raise RunError(f"{folder}: no run.json; make the run with `farm train`")
        return cls.from_json(path.read_text())

    @classmethod
    def from_json(cls, text: str) -> Run:
        record = json.loads(text)
        record["view"] = ModelView.model_validate(record["view"])
        record["schema"] = RecordSchema.model_validate(record["schema"])
        return cls(**record)


def new_run(data: Prepared, view: ModelView, settings: Settings) -> Run:
    """A run that has not begun.  RunError when there is nothing to train on."""
    times = data.samples["request_time"][data.rows("train")]
    if len(times) == 0:
        raise RunError(f"{data.path}: no training samples before the validation day; choose a later --test-from")
    span = {"first_ms": int(times[0]), "last_ms": int(times[-1])}
    return Run(settings, view, data.schema, data.info.source, span, data=data.info.digest)


def begin(folder: Path, run: Run) -> None:
    """Make the folder this run's from its first step on.  What another one left there is none of its own."""
    for name in (CHECKPOINT, MODEL, CALIBRATION):
        (folder / name).unlink(missing_ok=True)
    run.save(folder)


def same_data(run: Run, data: Prepared) -> bool:
    """Whether the run was trained on these data, as far as both say."""
    return not run.data or not data.info.digest or run.data == data.info.digest


def load_model(folder: str | Path) -> tuple[Run, Ranker]:
    """The run and its model at the chosen epoch, ready to predict; RunError when there is none."""
    run = Run.load(folder)
    weights = Path(folder) / MODEL
    if not weights.is_file():
        raise RunError(f"{folder}: no model.pt; the run stopped before its first epoch ended, train it again")
    config, _ = split_settings(run.settings)
    model = Ranker(config, run.view)
    model.load_state_dict(torch.load(weights, weights_only=True, map_location="cpu"))
    return run, model.eval()


def require_view(run: Run, data: Prepared) -> None:
    """RunError when the data does not hold what the run's model reads.  Tables and buckets are the model's own."""
    if _reads(run.view) != _reads(data.view):
        raise RunError(f"{data.path}: its model view is not the run's; evaluate on data prepared as the run's was")


def _reads(view: ModelView) -> tuple[Any, ...]:
    return view.tasks, view.history_length, view.history_delay_s, [view.columns(part) for part in PARTS]


def best_epoch(run: Run, config: TrainConfig) -> int:
    return int(np.argmax([_score(epoch, config.stop_on, run.view.tasks[0]) for epoch in run.epochs]))


def has_stopped(run: Run, config: TrainConfig) -> bool:
    """Whether `patience` epochs have brought nothing better."""
    return bool(run.epochs) and len(run.epochs) - 1 - best_epoch(run, config) >= config.patience


def _score(epoch: dict[str, Any], stop_on: str, task: str) -> float:
    """The validation figure that chooses the epoch; minus the loss when the validation day cannot say."""
    values = [epoch["valid"][task].get(name) for name in stop_on.split("+")]
    if any(value is None for value in values):
        return -float(epoch["loss"])
    return float(np.mean(values))


def write_atomic(path: Path, content: bytes) -> None:
    """The whole file or the one before it, whatever stops the process."""
    scratch = path.with_suffix(".tmp")
    scratch.write_bytes(content)
    os.replace(scratch, path)


def refuse_other(folder: Path, settings: Settings, data: Prepared) -> None:
    """RunError when the folder holds a run with other settings or data, finished or not: nothing is overwritten.

    settings: as `train` takes them.
    """
    if not (folder / RUN).is_file():
        return
    model_config, config = split_settings({**data.info.training, **settings})
    run, wanted = Run.load(folder), {**vars(model_config), **vars(config)}
    held = run.settings
    other = [f"{name}={held.get(name)}, not {value}" for name, value in wanted.items() if held.get(name) != value]
    if not same_data(run, data):
        other.append(f"other data than {data.path}")
    if other:
        raise RunError(f"{folder}: holds a run with {'; '.join(other)}; give another folder, or delete this one")
