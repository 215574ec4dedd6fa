"""Figures and paired differences of study.json, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from model.report.markup import Html, cell, interval_points, panels, percent, points
from model.report.subject import Figures
from model.report.svg import Interval, intervals
from model.study.grid import BASE, FARM


@dataclass(frozen=True)
class Difference:
    """A paired difference a - b of one metric of one task."""

    a: str
    b: str
    task: str
    metric: str
    group: str | None  # an activity group, None for all users
    difference: float
    interval: tuple[float, float] | None  # corrected for the number of comparisons
    p_holm: float | None

    @property
    def excludes_zero(self) -> bool:
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]

    @classmethod
    def of(cls, record: dict[str, Any]) -> Difference:
        interval = record.get("interval")
        return cls(
            a=record["a"],
            b=record["b"],
            task=record["task"],
            metric=record["metric"],
            group=record.get("group"),
            difference=record["difference"],
            interval=None if interval is None else (interval[0], interval[1]),
            p_holm=record.get("p_holm"),
        )

    def as_dict(self) -> Figures:
        return asdict(self)


def differences(record: dict[str, Any], metric: str, grouped: bool = False) -> list[Difference]:
    """The comparisons of one metric, of groups of users or of all; FARM against the base first."""
    found = [Difference.of(c) for c in record.get("comparisons", []) if c["metric"] == metric]
    kept = [d for d in found if (d.group is not None) == grouped]
    return sorted(kept, key=lambda d: (d.a, d.b) != (FARM, BASE))


def difference_cell(difference: Difference | None) -> str:
    """The difference in points and its interval; bold, with an arrow, when the interval excludes zero."""
    if difference is None:
        return "–"
    arrow = "▲" if difference.difference > 0 else "▼"
    mark = arrow if difference.excludes_zero else ""
    return cell(points(difference.difference), interval_points(difference.interval), mark)


def mean_cell(figure: Figures | None, best: bool) -> str:
    """mean ± std over seeds, in percent; of one seed there is no std."""
    if figure is None or figure.get("mean") is None:
        return "–"
    several = figure.get("std") is not None and len(figure.get("seeds", [])) > 1
    return cell(percent(figure["mean"]), f"± {percent(figure['std'])}" if several else "", "★" if best else "")


def difference_panels(what: str, tasks: Sequence[str], found: list[Difference]) -> Html:
    """A chart of intervals for each task, in points, their axes alike."""
    ends = [100 * end for d in found for end in (d.interval or (d.difference, d.difference))]
    by_task = {task: [_interval(d) for d in found if d.task == task] for task in tasks}
    charts = [
        intervals(f"{what}, {task}", rows, "percentage points", zero=True, holds=ends)
        for task, rows in by_task.items()
        if rows
    ]
    return panels(*charts)


def _interval(d: Difference) -> Interval:
    """Grey when it holds zero."""
    low, high = d.interval or (d.difference, d.difference)
    label = d.group or (d.b if d.a == FARM else f"{d.a} − {d.b}")
    return Interval(label, 100 * d.difference, 100 * low, 100 * high, style=0 if d.excludes_zero else 5)
