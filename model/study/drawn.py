"""AUC, UAUC and GAUC of every variant and seed on the test days, in every draw of users.

Letters: N test samples, T tasks, S seeds, B draws of users (the first of them the users themselves).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from model.datasets.prepared import Prepared
from model.metrics import MEASURABLE_POSITIVES
from model.study.bootstrap import Draws, draw_users, drawn_auc, drawn_group_aucs

METRICS = ("auc", "uauc", "gauc")
Progress = Callable[[str], None]
Scores = Mapping[str, list[np.ndarray]]  # by variant, per seed: probabilities [N, T]


class Cell(NamedTuple):
    """What a figure is of."""

    task: str
    metric: str
    group: str | None = None  # activity group of the users; None for all


@dataclass(frozen=True)
class Part:
    """The test samples that a cell's figures are over: those of one task with a known label, perhaps of one group."""

    task: str
    index: int  # of the task
    group: str | None
    rows: np.ndarray  # [n] of the test samples
    labels: np.ndarray  # [n] 0 or 1
    users: np.ndarray  # [n]

    @property
    def positives(self) -> int:
        return int(self.labels.sum())

    @property
    def measurable(self) -> bool:
        return min(self.positives, len(self.labels) - self.positives) >= MEASURABLE_POSITIVES

    def cells(self) -> list[Cell]:
        return [Cell(self.task, metric, self.group) for metric in (METRICS if self.group is None else METRICS[:1])]

    def as_json(self, metric: str | None = None) -> dict[str, Any]:
        """What is said of it when it is not measurable: all of it, or one metric."""
        counts = {"positives": self.positives, "samples": len(self.labels)}
        return {"task": self.task, "group": self.group, "metric": metric, **counts}


@dataclass
class Drawn:
    """Figures in every draw."""

    tasks: tuple[str, ...]
    groups: tuple[str, ...]
    figures: dict[str, dict[Cell, np.ndarray]] = field(default_factory=dict)  # by variant: [S, B] of each cell
    not_measurable: list[dict[str, Any]] = field(default_factory=list)  # parts with too few samples of one class

    def has(self, variant: str, cell: Cell) -> bool:
        return cell in self.figures.get(variant, {})


def parts(data: Prepared) -> Iterator[Part]:
    """The parts of the test samples: every task for all users, then for each activity group."""
    rows = data.rows("test")
    labels, users = np.asarray(data.samples["labels"][rows]), np.asarray(data.samples["user_row"][rows])
    group = np.asarray(data.users["activity_group"])[users] if data.info.group_names else np.full(len(rows), -1)
    for number, name in [(None, None), *enumerate(data.info.group_names)]:
        members = np.ones(len(rows), bool) if number is None else group == number
        for index, task in enumerate(data.view.tasks):
            there = np.flatnonzero(members & (labels[:, index] >= 0))
            yield Part(task, index, name, there, labels[there, index], users[there])


def draw_figures(data: Prepared, scores: Scores, draws: int, progress: Progress) -> Drawn:
    """The figures of all variants, over the same draws of users."""
    drawn = Drawn(tuple(data.view.tasks), data.info.group_names, {name: {} for name in scores})
    users = draw_users(data.samples["user_row"][data.rows("test")], draws + 1)
    for part in parts(data):
        if not part.measurable:
            drawn.not_measurable.append(part.as_json())
            continue
        progress(f"figures of {part.task}{f', {part.group} users' if part.group else ''}")
        found = {name: _part_figures(part, per_seed, users) for name, per_seed in scores.items()}
        for cell in part.cells():
            if all(np.isfinite(figures[cell]).all() for figures in found.values()):
                for name, figures in found.items():
                    drawn.figures[name][cell] = figures[cell]
            else:  # its positives are of so few users that some draws hold none
                drawn.not_measurable.append(part.as_json(cell.metric))
    return drawn


def _part_figures(part: Part, per_seed: list[np.ndarray], users: Draws) -> dict[Cell, np.ndarray]:
    """[S, B] of each cell of the part."""
    found = [_seed_figures(part, scores[part.rows, part.index], users) for scores in per_seed]
    return {cell: np.stack([one[i] for one in found]) for i, cell in enumerate(part.cells())}


def _seed_figures(part: Part, scores: np.ndarray, users: Draws) -> list[np.ndarray]:
    """[B] of each cell of the part."""
    figures = [drawn_auc(scores, part.labels, part.users, users)]
    if part.group is None:
        figures += drawn_group_aucs(part.users, scores, part.labels, part.users, users)
    return figures


def summary(figures: np.ndarray | None) -> dict[str, Any]:
    """Mean and sample standard deviation over seeds of figures [S, B]; without figures, None."""
    if figures is None:
        return {"mean": None, "std": None, "seeds": []}
    seeds = figures[:, 0]
    return {"mean": float(seeds.mean()), "std": float(seeds.std(ddof=1)), "seeds": seeds.tolist()}
