"""The report: every section measured, then rendered; the figures as JSON beside the page."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from model.report import (
    alignment,
    bounds,
    calibration_curves,
    datacard,
    degraded,
    frequency_case,
    fusing,
    groups,
    overview,
    performance,
    training_curves,
)
from model.report.page import document
from model.report.subject import Subject

SECTIONS: dict[str, ModuleType] = {  # each has TITLE, measure(subject) -> figures, render(figures) -> markup
    "summary": overview,
    "datacard": datacard,
    "performance": performance,
    "bounds": bounds,
    "gates": frequency_case,
    "align": alignment,
    "fuse": fusing,
    "groups": groups,
    "calibration": calibration_curves,
    "degraded": degraded,
    "training": training_curves,
}
PAPER = (
    "The evaluation of Xiaodong Li et al., FARM: Frequency-Aware Model for Cross-Domain Live-Streaming Recommendation"
    " (2025), sections 4.2 to 4.6, on this data."
)


def write_report(study: Path, data: Path, out: Path, progress: Callable[[str], None] = lambda text: None) -> Path:
    """Write the report of a STUDY folder and its PREPARED data to `out`, and its figures to the same name with .json.

    A part that the study has no run for says so and how it is made.  ReportError when the folder holds no study, or
    one of other data; PreparedError and RunError as their folders deserve.
    """
    subject = Subject.open(study, data)
    figures = {}
    for name, module in SECTIONS.items():
        progress(f"report: {module.TITLE}")
        figures[name] = module.measure(subject)
    title = f"FARM, evaluated on {subject.data.info.source}"
    contents = [(name, module.TITLE) for name, module in SECTIONS.items()]
    page = document(title, PAPER, contents, [module.render(figures[name]) for name, module in SECTIONS.items()])
    out.parent.mkdir(parents=True, exist_ok=True)
    _write(out.with_suffix(".json"), json.dumps(figures, indent=1, allow_nan=False) + "\n")
    _write(out, page)
    return out


def _write(path: Path, text: str) -> None:
    scratch = path.with_name(f".{path.name}.tmp")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)
