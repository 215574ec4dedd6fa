"""User groups (section 4.6; Table 4): the gain of FARM over the base by activity group."""

from __future__ import annotations

from model.report.markup import Html, Table, cell, interval_points, note, paragraph, percent, points
from model.report.page import section
from model.report.results import Difference, difference_cell, difference_panels, differences
from model.report.subject import Figures, Subject
from model.study.grid import BASE, FARM

TITLE = "Gain by activity group (Table 4)"


def measure(subject: Subject) -> Figures:
    groups = subject.record.get("groups", {})
    absent = [name for name in (BASE, FARM) if name not in groups]
    pair = [d for d in differences(subject.record, "auc", grouped=True) if (d.a, d.b) == (FARM, BASE)]
    return {
        "tasks": list(subject.tasks),
        "groups": _names(subject),
        "auc": {name: groups[name] for name in (BASE, FARM) if name in groups},
        "differences": [d.as_dict() for d in pair],
        "missing": subject.missing(*absent) if absent else None,
    }


def _names(subject: Subject) -> list[str]:
    """Groups in the order of the data, then any others the study has."""
    studied = dict.fromkeys(g for of in subject.record.get("groups", {}).values() for g in of)
    known = [name for name in subject.data.info.group_names if name in studied]
    return known + [name for name in studied if name not in known]


def render(figures: Figures) -> Html:
    if len(figures["auc"]) < 2:
        return section("groups", TITLE, note(figures["missing"]))
    found = [Difference(**d) for d in figures["differences"]]
    order = {name: i for i, name in enumerate(figures["groups"])}
    found.sort(key=lambda d: (figures["tasks"].index(d.task), order.get(str(d.group), len(order))))
    parts = [
        paragraph(
            "AUC of FARM and of the base model within each group of users, and FARM's gain in percentage points."
        ),
        _table(figures, found),
    ]
    parts += [_contrast(d) for d in found if d.group not in order]
    if found:
        parts.append(difference_panels("AUC: FARM minus base", figures["tasks"], found))
    return section("groups", TITLE, *parts)


def _contrast(d: Difference) -> Html:
    """A comparison of the gains of several groups."""
    return paragraph(f"{d.task}, gain of {d.group}: {points(d.difference)} points {interval_points(d.interval)}.")


def _table(figures: Figures, found: list[Difference]) -> Html:
    cells = {(d.task, d.group): d for d in found}
    rows = []
    for task in figures["tasks"]:
        gains = [difference_cell(cells.get((task, group))) for group in figures["groups"]]
        rows.append([f"{task}: gain", *gains])
        for name in (FARM, BASE):
            rows.append([f"{task}: {name}", *(_auc(figures, name, group, task) for group in figures["groups"])])
    return Table("AUC by activity group (%), gain in points", ["task", *figures["groups"]], rows).html()


def _auc(figures: Figures, variant: str, group: str, task: str) -> str:
    figure = figures["auc"][variant].get(group, {}).get(task, {}).get("auc")
    if not figure or figure.get("mean") is None:
        return "–"
    return cell(percent(figure["mean"]))
