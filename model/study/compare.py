"""Which variants are compared on what, in which family, and the corrected answers.

Everything is compared with FARM.  Families:
    base            FARM - ple: every task and metric
    ablations       FARM - an ablation: AUC of the tasks that the ablated structure was planted for
    groups          FARM - ple: click AUC, its gain for low and mid less its gain for high and full
    base_by_group   FARM - ple: AUC by activity group
    heads, ablations_rest, "other: cutoff" ...
                    FARM - a variant: every task and metric that is in no family above; a family for all heads, one for
                    all ablations, one for all values of a setting
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from model.study.drawn import METRICS, Cell, Drawn
from model.study.grid import ABLATIONS, BASE, FARM, HEADS
from model.study.simulation import Simulation
from model.study.statistics import Estimate, estimate, holm

CONTRAST = "low+mid - high+full"
_CONTRAST_WEIGHTS = {"low": 0.5, "mid": 0.5, "high": -0.5, "full": -0.5}


@dataclass(frozen=True)
class Question:
    """How much greater is a figure of `a` than of `b`: the weighted sum of cells."""

    a: str
    b: str
    task: str
    metric: str
    group: str | None  # activity group, or CONTRAST
    family: str
    cells: tuple[tuple[Cell, float], ...]

    def answerable(self, drawn: Drawn) -> bool:
        return all(drawn.has(variant, cell) for variant in (self.a, self.b) for cell, _ in self.cells)

    def differences(self, drawn: Drawn) -> np.ndarray:
        """[S, B]"""
        a, b = drawn.figures[self.a], drawn.figures[self.b]
        total: np.ndarray = np.sum([weight * (a[cell] - b[cell]) for cell, weight in self.cells], axis=0)
        return total


@dataclass(frozen=True)
class Comparison:
    """An answer: the figure of `a` minus the figure of `b`, mean over seeds."""

    a: str
    b: str
    task: str
    metric: str
    group: str | None
    difference: float
    interval: tuple[float, float]  # 95%, corrected for the family
    interval_plain: tuple[float, float]  # 95%, of this comparison alone
    p: float
    p_holm: float
    seeds: list[float]  # the difference of each seed
    family: str

    @property
    def excludes_zero(self) -> bool:
        return not self.interval[0] <= 0 <= self.interval[1]

    def as_json(self) -> dict[str, Any]:
        return vars(self) | {"interval": list(self.interval), "interval_plain": list(self.interval_plain)}


def compare(drawn: Drawn, simulation: Simulation) -> list[Comparison]:
    """The answers to all questions that the study's variants raise and whose figures are measurable."""
    asked = [q for q in questions(list(drawn.figures), drawn, simulation) if q.answerable(drawn)]
    families = list(dict.fromkeys(q.family for q in asked))
    return [answer for family in families for answer in _answers([q for q in asked if q.family == family], drawn)]


def questions(variants: list[str], drawn: Drawn, simulation: Simulation) -> list[Question]:
    """Every question that these variants raise."""
    asked: list[Question] = []
    for variant in variants:
        if variant == FARM:
            continue
        claimed = simulation.tasks_of(variant, drawn.tasks) if variant in ABLATIONS else []
        asked += [_question(variant, Cell(task, "auc"), "ablations") for task in claimed]
        rest = [Cell(task, metric) for metric in METRICS for task in drawn.tasks]
        taken = {Cell(task, "auc") for task in claimed}
        asked += [_question(variant, cell, _family(variant)) for cell in rest if cell not in taken]
    return asked + (_group_questions(drawn) if BASE in variants else [])


def _family(variant: str) -> str:
    if variant == BASE:
        return "base"
    if variant in HEADS:
        return "heads"
    return "ablations_rest" if variant in ABLATIONS else f"other: {variant.partition('=')[0]}"


def _group_questions(drawn: Drawn) -> list[Question]:
    asked = [
        _question(BASE, Cell(task, "auc", group), "base_by_group") for group in drawn.groups for task in drawn.tasks
    ]
    if set(_CONTRAST_WEIGHTS) <= set(drawn.groups):
        click = drawn.tasks[0]
        cells = tuple((Cell(click, "auc", group), weight) for group, weight in _CONTRAST_WEIGHTS.items())
        asked.append(Question(FARM, BASE, click, "auc", CONTRAST, "groups", cells))
    return asked


def _question(variant: str, cell: Cell, family: str) -> Question:
    return Question(FARM, variant, cell.task, cell.metric, cell.group, family, ((cell, 1.0),))


def _answers(family: list[Question], drawn: Drawn) -> list[Comparison]:
    differences = [question.differences(drawn) for question in family]
    estimates = [estimate(values) for values in differences]
    corrected = holm(estimates)
    return [
        _answer(question, values, one, fixed.p, fixed.interval)
        for question, values, one, fixed in zip(family, differences, estimates, corrected, strict=True)
    ]


def _answer(
    question: Question, differences: np.ndarray, one: Estimate, p_holm: float, interval: tuple[float, float]
) -> Comparison:
    return Comparison(
        a=question.a,
        b=question.b,
        task=question.task,
        metric=question.metric,
        group=question.group,
        difference=one.difference,
        interval=interval,
        interval_plain=one.interval(),
        p=one.p(),
        p_holm=p_holm,
        seeds=differences[:, 0].tolist(),
        family=question.family,
    )
