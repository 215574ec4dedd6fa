"""Offline performance (section 4.2; Tables 1 and 2): AUC, UAUC and GAUC of every variant, paired differences."""

from __future__ import annotations

from collections.abc import Sequence

from model.report.markup import Html, Table, element, join, note, number, paragraph
from model.report.page import section
from model.report.results import Difference, difference_cell, difference_panels, differences, mean_cell
from model.report.subject import Figures, Subject
from model.study.grid import BASE, FARM

TITLE = "Offline performance (Tables 1 and 2)"
METRICS = {"auc": "AUC", "uauc": "UAUC", "gauc": "GAUC"}
PAPER_VARIANTS = (BASE, FARM, "no_video_frequency", "no_live_frequency", "no_align", "no_fuse")


def measure(subject: Subject) -> Figures:
    results = subject.record.get("results", {})
    absent = [name for name in PAPER_VARIANTS if name not in results]
    return {
        "tasks": list(subject.tasks),
        "results": {name: results[name] for name in subject.variants},
        "differences": {metric: [d.as_dict() for d in differences(subject.record, metric)] for metric in METRICS},
        "variants": {name: subject.record.get("variants", {}).get(name, {}) for name in subject.variants},
        "missing": subject.missing(*absent) if absent else None,
    }


def render(figures: Figures) -> Html:
    explained = paragraph(
        "All figures are in percent, on the same test samples: the mean over seeds, and below it the standard"
        " deviation; ★ is the best of a column. Differences are paired by seed and user, in percentage points,"
        " with 95% intervals corrected for the number of comparisons; ▲ and ▼ are those whose interval excludes zero."
        " “–”: too few positives to measure, or not in the study."
    )
    missing = [note(figures["missing"])] if figures["missing"] else []
    parts = [_metric(figures, metric, name) for metric, name in METRICS.items()]
    return section("performance", TITLE, explained, *parts, _parameters(figures), *missing)


def _metric(figures: Figures, metric: str, name: str) -> Html:
    found = [Difference(**d) for d in figures["differences"][metric]]
    parts = [element("h3", name), _means(figures, metric, name)]
    if found:
        parts.append(_differences(figures["tasks"], found, name))
        parts.append(difference_panels(f"{name}: FARM minus another", figures["tasks"], found))
    return join(*parts)


def _means(figures: Figures, metric: str, name: str) -> Html:
    best = {task: _best(figures["results"], task, metric) for task in figures["tasks"]}
    rows = [
        [variant, *(mean_cell(_figure(results, task, metric), variant == best[task]) for task in figures["tasks"])]
        for variant, results in figures["results"].items()
    ]
    return Table(f"{name} (%): mean ± standard deviation over seeds", ["variant", *figures["tasks"]], rows).html()


def _figure(results: Figures, task: str, metric: str) -> Figures | None:
    figure: Figures | None = results.get(task, {}).get(metric)
    return figure


def _best(results: Figures, task: str, metric: str) -> str | None:
    means = {name: _figure(of, task, metric) for name, of in results.items()}
    known = {name: f["mean"] for name, f in means.items() if f is not None and f.get("mean") is not None}
    return max(known, key=lambda name: known[name]) if len(known) > 1 else None


def _differences(tasks: Sequence[str], found: list[Difference], name: str) -> Html:
    pairs = dict.fromkeys((d.a, d.b) for d in found)
    cells = {(d.a, d.b, d.task): d for d in found}
    rows = [[f"{a} − {b}", *(difference_cell(cells.get((a, b, task))) for task in tasks)] for a, b in pairs]
    return Table(f"{name}: paired differences (percentage points)", ["pair", *tasks], rows).html()


def _parameters(figures: Figures) -> Html:
    variants = {name: v["parameters"] for name, v in figures["variants"].items() if v.get("parameters")}
    if not variants:
        return join()
    base = variants.get(BASE)
    rows = []
    for name, p in variants.items():
        ratio = number(p["dense"] / base["dense"], 2) if base and base["dense"] else "–"
        rows.append(
            [
                name,
                element("code", _changed(figures["variants"], name)),
                *(f"{p[k]:,}" for k in ("total", "tables", "dense")),
                ratio,
            ]
        )
    columns = ["variant", "settings unlike FARM's", "total", "tables", "dense", f"dense / {BASE}"]
    table = Table("Number of weights", columns, rows, texts=2).html()
    return join(element("h3", "Parameters"), table, _farm_settings(figures["variants"].get(FARM, {})))


def _changed(variants: Figures, name: str) -> str:
    """The settings of a variant that are not FARM's."""
    farm = variants.get(FARM, {}).get("settings", {})
    own = variants[name].get("settings", {})
    return ", ".join(f"{key}={value}" for key, value in own.items() if farm.get(key) != value)


def _farm_settings(farm: Figures) -> Html:
    settings = ", ".join(f"{key}={value}" for key, value in farm.get("settings", {}).items())
    return element("p", "FARM's settings: ", element("code", settings)) if settings else join()
