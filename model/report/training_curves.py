"""Training curves: loss and validation AUC by epoch and seed."""

from __future__ import annotations

import numpy as np

from model.report.markup import Html, Table, note, number, panels, paragraph, percent
from model.report.page import section
from model.report.subject import Figures, Subject
from model.report.svg import Series, lines
from model.study.grid import BASE, FARM

TITLE = "Training"


def measure(subject: Subject) -> Figures:
    names = dict.fromkeys([*subject.variants, FARM, BASE])
    variants = {name: _variant(subject, name) for name in names if subject.seeds(name)}
    return {"task": subject.tasks[0], "variants": variants, "missing": None if variants else subject.missing(FARM)}


def _variant(subject: Subject, name: str) -> Figures:
    """By seed."""
    curves = {}
    for seed in subject.seeds(name):
        run = subject.run(name, seed)
        curves[seed] = {
            "loss": [epoch["loss"] for epoch in run.epochs],
            "auc": [epoch["valid"][subject.tasks[0]]["auc"] for epoch in run.epochs],
            "best_epoch": run.best_epoch,
        }
    return curves


def render(figures: Figures) -> Html:
    if not figures["variants"]:
        return section("training", TITLE, note(figures["missing"]))
    explained = paragraph(
        f"Mean training loss (Eq. 15; of {BASE} without the align term) and validation AUC of {figures['task']}, a line"
        " for each seed. The validation day chose the epoch."
    )
    charts = [
        _chart(figures, "loss", "Training loss", "loss (nats)", 1.0),
        _chart(figures, "auc", f"Validation AUC of {figures['task']}", "AUC (%)", 100.0),
    ]
    return section("training", TITLE, explained, panels(*charts), _table(figures))


def _chart(figures: Figures, what: str, title: str, label: str, factor: float) -> Html:
    series = []
    for style, name in enumerate(name for name in (FARM, BASE) if name in figures["variants"]):
        for i, curve in enumerate(figures["variants"][name].values()):
            points = [(e + 1, factor * v) for e, v in enumerate(curve[what]) if v is not None]
            x, y = [p[0] for p in points], [p[1] for p in points]
            series.append(Series(name if i == 0 else "", x, y, style=style, marks=True))
    epochs = max((len(s.x) for s in series), default=1)
    return lines(title, series, "epoch", label, x_range=(0.5, epochs + 0.5), whole_x=True)


def _table(figures: Figures) -> Html:
    rows = []
    for name, seeds in figures["variants"].items():
        curves = list(seeds.values())
        best = [c["auc"][c["best_epoch"]] for c in curves if c["auc"] and c["auc"][c["best_epoch"]] is not None]
        rows.append(
            [
                name,
                str(len(curves)),
                ", ".join(str(len(c["loss"])) for c in curves),
                ", ".join(str(c["best_epoch"] + 1) for c in curves),
                percent(float(np.mean(best)) if best else None),
                number(float(np.mean([c["loss"][c["best_epoch"]] for c in curves if c["loss"]])), 4),
            ]
        )
    columns = ["variant", "seeds", "epochs run", "epoch chosen", "validation AUC (%)", "loss"]
    return Table(
        f"By variant; AUC of {figures['task']} and loss at the chosen epoch, mean over seeds", columns, rows
    ).html()
