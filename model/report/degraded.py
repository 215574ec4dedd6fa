"""AUC of every degraded answer: what is left when the store knows less of the user or of the author.

Letters: B samples, U requests, N test samples, T tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import rich.table
import torch
from rich.console import Console

from feature_store.schema import DOMAINS, MISSING, Domain
from feature_store.view import REQUEST_CANDIDATE, REQUEST_USER, ModelView
from model.datasets.prepared import Prepared, history_ends
from model.datasets.samples import Batch, batches
from model.evaluate import batch_logits
from model.evaluate import measure as measured
from model.farm import Ranker
from model.report.markup import Html, Table, cell, join, note, paragraph, percent, points
from model.report.page import section
from model.report.stale import EXPLAINED as STALE_EXPLAINED
from model.report.stale import stale_conditions
from model.report.subject import BATCH, Figures, Subject
from model.study.grid import BASE, FARM

TITLE = "Degraded answers"
WHOLE = "whole"
Change = Callable[[Batch], Batch]


def changes(view: ModelView) -> dict[str, Change]:
    """What each degraded answer is made from, by name."""
    return {
        WHOLE: lambda batch: batch,
        "no video history": lambda batch: without_history(batch, "video"),
        "no live history": lambda batch: without_history(batch, "live"),
        "no history": lambda batch: without_history(batch, *DOMAINS),
        "unknown user": lambda batch: unknown_user(batch, view),
        "unknown author": lambda batch: unknown_author(batch, view),
        "unknown user and author": lambda batch: unknown_author(unknown_user(batch, view), view),
    }


STALE = "stale histories"
EXPLAINED = {
    WHOLE: "everything known",
    "no video history": "the video history is empty",
    "no live history": "the live history is empty",
    "no history": "both are empty",
    "unknown user": "both are empty, and the user's attributes missing",
    "unknown author": "the author's attributes are missing, the ids are there",
    "unknown user and author": "as when the store does not answer",
    STALE: "histories as they were at the first test request",
    **STALE_EXPLAINED,
}


def without_history(batch: Batch, *domains: Domain) -> Batch:
    """The batch, the histories of `domains` empty."""
    emptied: dict[str, np.ndarray] = {}
    for domain in domains:
        events = batch.users.feeds()[domain][:, :1]  # [U, 1, F]: one slot, a pad
        emptied |= {domain: np.full_like(events, MISSING), f"{domain}_length": np.zeros_like(batch.users.now)}
    return replace(batch, users=replace(batch.users, **emptied))


def unknown_user(batch: Batch, view: ModelView) -> Batch:
    """The batch as served of users that the store does not know: the id and the context are the request's."""
    user = batch.users.user.copy()
    for index, column in enumerate(view.columns("user")):
        if column not in REQUEST_USER:
            user[:, index] = MISSING
    emptied = without_history(batch, *DOMAINS)
    return replace(emptied, users=replace(emptied.users, user=user))


def unknown_author(batch: Batch, view: ModelView) -> Batch:
    """The batch as served of authors that the store does not know: the ids are the request's."""
    candidates = batch.candidates.copy()
    for index, column in enumerate(view.columns("candidate")):
        if column not in REQUEST_CANDIDATE:
            candidates[:, index] = MISSING
    return replace(batch, candidates=candidates)


def frozen(data: Prepared) -> Prepared:
    """The same data, the histories of the test samples as they were at the first test request."""
    rows = data.rows("test")
    samples = dict(data.samples)
    times = np.full(len(rows), samples["request_time"][rows].min(initial=2**62))
    for domain in DOMAINS:
        ends = np.array(samples[f"{domain}_end"])
        ends[rows] = history_ends(data.events[domain], samples["user_row"][rows], times)
        samples[f"{domain}_end"] = ends
    return replace(data, samples=samples)


@torch.inference_mode()
def predict_changed(model: Ranker, data: Prepared, rows: np.ndarray, change: Change) -> np.ndarray:
    """Probabilities [N, T] of the samples `rows`, from batches changed by `change`."""
    parts = [torch.sigmoid(batch_logits(model, change(batch))[0]).numpy() for batch in batches(data, rows, BATCH)]
    return np.concatenate(parts) if parts else np.empty((0, len(data.view.tasks)), np.float32)


def measure(subject: Subject) -> Figures:
    rows = subject.sampled_rows()
    models = {name: subject.model(name) for name in (FARM, BASE)}
    found = {name: by_condition(model, subject.data, rows) for name, model in models.items() if model is not None}
    absent = [name for name in (FARM, BASE) if name not in found]
    return {
        "samples": len(rows),
        "tasks": list(subject.tasks),
        "variants": found,
        "missing": subject.missing(*absent) if absent else None,
    }


def by_condition(model: Ranker, data: Prepared, rows: np.ndarray) -> Figures:
    """AUC of the samples `rows` by condition and task; the first condition is WHOLE."""
    by_name = changes(data.view)
    scores = {condition: predict_changed(model, data, rows, change) for condition, change in by_name.items()}
    scores[STALE] = predict_changed(model, frozen(data), rows, by_name[WHOLE])
    for condition, stale in stale_conditions(data, rows):
        scores[condition] = predict_changed(model, stale, rows, by_name[WHOLE])
    return {condition: _aucs(data, rows, s) for condition, s in scores.items()}


def print_conditions(conditions: Figures, title: str) -> None:
    """A table of `by_condition`: AUC of the whole, and what each condition loses, in percentage points."""
    whole = conditions[WHOLE]
    table = rich.table.Table(title=title, caption="AUC (%); below it the difference in points.", padding=(0, 1))
    table.add_column("what is known")
    for task in whole:
        table.add_column(task, justify="right")
    for name, of in conditions.items():
        table.add_row(name, *(_plain(of[task], None if name == WHOLE else whole[task]) for task in whole))
    Console().print(table)


def _plain(figure: Figures, whole: Figures | None) -> str:
    if figure["auc"] is None or not figure["measurable"]:
        return "-"
    return f"{100 * figure['auc']:.2f}" if whole is None else f"{100 * (figure['auc'] - whole['auc']):+.2f}"


def _aucs(data: Prepared, rows: np.ndarray, scores: np.ndarray) -> Figures:
    return {
        task: {"auc": figures.auc, "measurable": figures.measurable}
        for task, figures in measured(data, rows, scores).items()
    }


def render(figures: Figures) -> Html:
    missing = [note(figures["missing"])] if figures["missing"] else []
    explained = paragraph(
        f"AUC (%) over {figures['samples']:,} test samples of the first seed's model when the service must answer with"
        " less, and below it the difference to the whole in percentage points. “–”: fewer than 50 positives."
    )
    tables = [_table(name, of, figures["tasks"]) for name, of in figures["variants"].items()]
    return section("degraded", TITLE, *([explained] if tables else []), *tables, *missing)


def _table(variant: str, conditions: Figures, tasks: list[str]) -> Html:
    whole = conditions[WHOLE]
    rows = [
        [cell(name, EXPLAINED[name]), *(_cell(of[task], None if name == WHOLE else whole[task]) for task in tasks)]
        for name, of in conditions.items()
    ]
    return Table(f"{variant}: AUC (%) of degraded answers", ["what is known", *tasks], rows).html()


def _cell(figure: Figures, whole: Figures | None) -> str:
    if figure["auc"] is None or not figure["measurable"]:
        return "–"
    return cell(percent(figure["auc"]), "" if whole is None else points(figure["auc"] - whole["auc"])) or join()
