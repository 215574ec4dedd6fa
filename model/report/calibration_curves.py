"""Calibration: predicted against observed rates per task, before and after the run's calibration.json.

Letters: N test samples, T tasks.
"""

from __future__ import annotations

import numpy as np

from model.metrics import MEASURABLE_POSITIVES, calibration_figures, reliability
from model.report.markup import Html, Table, join, note, number, panels, paragraph
from model.report.page import section
from model.report.subject import Figures, Subject
from model.report.svg import Series, lines
from model.study.grid import BASE, FARM

TITLE = "Calibration"
BINS = 10


def measure(subject: Subject) -> Figures:
    found = {name: _variant(subject, name) for name in (FARM, BASE) if subject.seeds(name)}
    absent = [name for name in (FARM, BASE) if name not in found]
    return {"variants": found, "missing": subject.missing(*absent) if absent else None}


def _variant(subject: Subject, name: str) -> Figures:
    """By "before" and "after", which is None when the run was not calibrated: figures and curve of every task."""
    scores = np.asarray(subject.scores(name))  # [N, T]
    calibration = subject.calibration(name)
    after = None if calibration is None else calibration.apply(scores)
    return {
        "before": _tasks(subject, scores),
        "after": None if after is None else _tasks(subject, after),
        "folder": None if after is not None else f"runs/{name}",
    }


def _tasks(subject: Subject, scores: np.ndarray) -> Figures:
    labels = np.asarray(subject.data.samples["labels"][subject.data.rows("test")])  # [N, T]
    return {task: _task(scores[:, i], labels[:, i]) for i, task in enumerate(subject.tasks)}


def _task(scores: np.ndarray, labels: np.ndarray) -> Figures:
    curve = reliability(scores, labels, BINS)
    points = {"predicted": curve.predicted.tolist(), "observed": curve.observed.tolist()}
    return {**calibration_figures(scores, labels), "curve": points}


def render(figures: Figures) -> Html:
    missing = [note(figures["missing"])] if figures["missing"] else []
    if not figures["variants"]:
        return section("calibration", TITLE, *missing)
    explained = paragraph(
        "Predicted / observed is the sum of the probabilities by the number of positives: 1 is right. Normalised"
        " entropy is the log loss by that of the task's rate: less is better, 1 says nothing. Curves are over bins"
        " of equal counts."
    )
    tables = [_table(name, of) for name, of in figures["variants"].items()]
    return section("calibration", TITLE, explained, *tables, _charts(figures["variants"]), *missing)


def _table(name: str, of: Figures) -> Html:
    rows = []
    for task, before in of["before"].items():
        after = of["after"][task] if of["after"] else {}
        pairs = ((number(f.get(key), places)) for key, places in _COLUMNS for f in (before, after))
        rows.append([task, f"{before['positives']:,}", *pairs])
    texts = ("predicted / observed", "normalised entropy")
    heads = [f"{text}, {when}" for text in texts for when in ("before", "after")]
    table = Table(f"{name}: calibration on the test days (first seed)", ["task", "positives", *heads], rows).html()
    if of["folder"] is None:
        return table
    return join(table, note(f"{name} has no calibration.json in {of['folder']}, so there is no after."))


_COLUMNS = (("predicted_observed", 3), ("ne", 4))


def _charts(variants: Figures) -> Html:
    """A reliability diagram for each task that can be measured, of the first variant."""
    name, of = next(iter(variants.items()))
    return panels(
        *(
            _chart(f"{name}: {task}", before, of["after"][task] if of["after"] else None)
            for task, before in of["before"].items()
            if before["positives"] >= MEASURABLE_POSITIVES
        )
    )


def _chart(title: str, before: Figures, after: Figures | None) -> Html:
    kinds = {"before": before} | ({} if after is None else {"after": after})
    series = [
        Series(kind, _percents(f["curve"]["predicted"]), _percents(f["curve"]["observed"]), style=style, marks=True)
        for (kind, f), style in zip(kinds.items(), (1, 0), strict=False)
    ]
    top = 1.05 * max([v for s in series for v in (*s.x, *s.y)], default=1.0) or 1.0
    reach = (0.0, top)
    return lines(title, series, "predicted (%)", "observed (%)", x_range=reach, y_range=reach, diagonal=True)


def _percents(values: list[float]) -> list[float]:
    return [100 * value for value in values]
