"""Predictions of a model over prepared samples, and their metrics.

Letters: N samples, T tasks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from model.align import Preferences
from model.datasets.prepared import Prepared
from model.datasets.samples import Batch, batches
from model.farm import Ranker
from model.metrics import TaskMetrics, calibration_figures, task_metrics
from model.tensors import Towers, logits, to_tensors


def tensors(batch: Batch) -> dict[str, torch.Tensor]:
    """The user inputs of a batch as tensors, by name."""
    return {name: torch.from_numpy(values) for name, values in batch.users.feeds().items()}


def batch_logits(model: Ranker, batch: Batch) -> tuple[torch.Tensor, Preferences | None]:
    """Logits [B, T] of a batch, on the device of the model, each request's user computed once; and the preferences of
    the U requests."""
    return logits(Towers.of(model), to_tensors(batch).to(next(model.parameters()).device))


@torch.inference_mode()
def predict(model: Ranker, data: Prepared, rows: np.ndarray, batch_size: int = 2048) -> np.ndarray:
    """Probabilities [N, T] float32 of the samples `rows`, in their order."""
    model.eval()
    parts = [torch.sigmoid(batch_logits(model, batch)[0]).cpu().numpy() for batch in batches(data, rows, batch_size)]
    return np.concatenate(parts) if parts else np.empty((0, len(data.view.tasks)), np.float32)


def measure(data: Prepared, rows: np.ndarray, scores: np.ndarray) -> dict[str, TaskMetrics]:
    """Metrics per task of scores [N, T] for the samples `rows`; samples whose label is not known are left out."""
    labels, users, pages = (data.samples[name][rows] for name in ("labels", "user_row", "page"))
    metrics = {}
    for index, task in enumerate(data.view.tasks):
        known = labels[:, index] >= 0
        metrics[task] = task_metrics(scores[known, index], labels[known, index], users[known], pages[known])
    return metrics


def calibration_effect(
    data: Prepared, rows: np.ndarray, raw: np.ndarray, calibrated: np.ndarray
) -> dict[str, dict[str, Any]]:
    """By task, `calibration_figures` before and after; raw, calibrated [N, T] of the samples `rows`."""
    labels = data.samples["labels"][rows]
    return {
        task: {
            "before": calibration_figures(raw[:, index], labels[:, index]),
            "after": calibration_figures(calibrated[:, index], labels[:, index]),
        }
        for index, task in enumerate(data.view.tasks)
    }


def as_json(metrics: dict[str, TaskMetrics]) -> dict[str, Any]:
    return {"tasks": {task: figures.as_dict() for task, figures in metrics.items()}}


def print_metrics(metrics: dict[str, dict[str, TaskMetrics]], title: str) -> None:
    """A table of one or several models' metrics, side by side per task."""
    table = Table(title=title, caption="P/O: predicted by observed positives.  NE: normalised entropy.", padding=(0, 0))
    for column in ("task", "model", "AUC", "UAUC", "GAUC", "GAUC/page", "P/O", "NE", "positives", "samples"):
        table.add_column(column, justify="left" if column in ("task", "model") else "right")
    tasks = next(iter(metrics.values()))
    for task in tasks:
        for model, figures in metrics.items():
            table.add_row(*_row(task, model, figures[task]))
    Console().print(table)


def _row(task: str, model: str, m: TaskMetrics) -> tuple[str, ...]:
    if not m.measurable:
        figures = ["too few", "", "", "", "", ""]
    else:
        ranking = ["-" if v is None else f"{v:.4f}" for v in (m.auc, m.uauc, m.gauc, m.gauc_page)]
        figures = [*ranking, *("-" if v is None else f"{v:.3f}" for v in (m.predicted_observed, m.ne))]
    return task, model, *figures, f"{m.positives:,}", f"{m.samples:,}"
