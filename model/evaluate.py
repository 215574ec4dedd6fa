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
from model.metrics import TaskMetrics, task_metrics

MOST_PADDING = 1.5  # places per sample, above which slates are too unequal to be computed as tiles


def tensors(batch: Batch) -> dict[str, torch.Tensor]:
    """The user inputs of a batch as tensors, by name."""
    return {name: torch.from_numpy(values) for name, values in batch.users.feeds().items()}


def batch_logits(model: Ranker, batch: Batch) -> tuple[torch.Tensor, Preferences | None]:
    """Logits [B, T] of a batch, each request's user computed once; and the preferences of the U requests."""
    state, preferences = model.user_state(**tensors(batch))
    candidates, request = torch.from_numpy(batch.candidates), torch.from_numpy(batch.request)
    tile, place = _tiles(request)
    if tile == 1:
        return model.candidate_logits(state, candidates[:, None], request)[:, 0], preferences
    users = len(batch.user_rows)
    packed = candidates.new_zeros(users * tile, candidates.shape[1]).index_copy(0, place, candidates)
    logits = model.candidate_logits(state, packed.view(users, tile, -1), torch.arange(users))  # [U, K, T]
    return logits.flatten(0, 1).index_select(0, place), preferences


def _tiles(request: torch.Tensor) -> tuple[int, torch.Tensor]:
    """Candidates per tile, and each sample's place among them [B]: the longest slate if that pads little, else one."""
    counts = torch.bincount(request)
    longest = int(counts.max())
    if longest * len(counts) > MOST_PADDING * len(request):
        return 1, torch.arange(len(request))
    before = torch.cumsum(counts, 0) - counts
    return longest, request * longest + torch.arange(len(request)) - before[request]


@torch.inference_mode()
def predict(model: Ranker, data: Prepared, rows: np.ndarray, batch_size: int = 2048) -> np.ndarray:
    """Probabilities [N, T] float32 of the samples `rows`, in their order."""
    model.eval()
    parts = [torch.sigmoid(batch_logits(model, batch)[0]).numpy() for batch in batches(data, rows, batch_size)]
    return np.concatenate(parts) if parts else np.empty((0, len(data.view.tasks)), np.float32)


def measure(data: Prepared, rows: np.ndarray, scores: np.ndarray) -> dict[str, TaskMetrics]:
    """Metrics per task of scores [N, T] for the samples `rows`; samples whose label is not known are left out."""
    labels, users, pages = (data.samples[name][rows] for name in ("labels", "user_row", "page"))
    metrics = {}
    for index, task in enumerate(data.view.tasks):
        known = labels[:, index] >= 0
        metrics[task] = task_metrics(scores[known, index], labels[known, index], users[known], pages[known])
    return metrics


def as_json(metrics: dict[str, TaskMetrics]) -> dict[str, Any]:
    return {"tasks": {task: figures.as_dict() for task, figures in metrics.items()}}


def print_metrics(metrics: dict[str, dict[str, TaskMetrics]], title: str) -> None:
    """A table of one or several models' metrics, side by side per task."""
    table = Table(title=title)
    for column in ("task", "model", "AUC", "UAUC", "GAUC", "GAUC/page", "positives", "samples"):
        table.add_column(column, justify="left" if column in ("task", "model") else "right")
    tasks = next(iter(metrics.values()))
    for task in tasks:
        for model, figures in metrics.items():
            table.add_row(*_row(task, model, figures[task]))
    Console().print(table)


def _row(task: str, model: str, m: TaskMetrics) -> tuple[str, ...]:
    if not m.measurable:
        figures = ["not measurable", "", "", ""]
    else:
        figures = ["-" if v is None else f"{v:.4f}" for v in (m.auc, m.uauc, m.gauc, m.gauc_page)]
    return task, model, *figures, f"{m.positives:,}", f"{m.samples:,}"
