"""How far from the best: the truth's AUC, and an oracle's that sees what a ranker can observe (simulated data only)."""

from __future__ import annotations

from model.report.markup import Html, Table, note, paragraph, percent
from model.report.page import section
from model.report.subject import Figures, Subject
from model.study.grid import BASE, FARM

TITLE = "Reachable AUC"


def measure(subject: Subject) -> Figures:
    bounds = subject.record.get("bounds") or {}
    results = subject.record.get("results", {})
    tasks = {}
    for task in subject.tasks:
        base, farm = (results.get(name, {}).get(task, {}).get("auc", {}).get("mean") for name in (BASE, FARM))
        limits = {name: (bounds.get(name) or {}).get(task) for name in ("oracle", "truth")}
        tasks[task] = {
            BASE: base,
            FARM: farm,
            **limits,
            **{f"way_to_{name}": way(base, farm, limit) for name, limit in limits.items()},
        }
    return {"known": bool(bounds), "tasks": tasks}


def way(base: float | None, farm: float | None, limit: float | None) -> float | None:
    """The share of the way from the base to the limit that FARM goes; None where there is none to go."""
    if base is None or farm is None or limit is None or limit <= base:
        return None
    return (farm - base) / (limit - base)


def render(figures: Figures) -> Html:
    if not figures["known"]:
        return section(
            "bounds", TITLE, note("The study has no bounds: only simulated data knows the true probabilities.")
        )
    rows = [
        [
            task,
            *(percent(f[name]) for name in (BASE, FARM, "oracle", "truth")),
            *(percent(f[f"way_to_{name}"], 0) for name in ("oracle", "truth")),
        ]
        for task, f in figures["tasks"].items()
    ]
    columns = ["task", BASE, FARM, "oracle", "truth", "way to oracle (%)", "way to truth (%)"]
    return section(
        "bounds",
        TITLE,
        paragraph(
            "The truth ranks by the probabilities that drew the labels. The oracle ranks by what a ranker can observe."
            " The way is how much of the distance from the base model FARM goes."
        ),
        Table("AUC (%) against its bounds", columns, rows).html(),
    )
