"""Frequency-aware analysis (section 4.3; Table 3): gates and predictions of a low-active user with rare positives.

Letters: N test samples, U users, T tasks.
"""

from __future__ import annotations

import numpy as np
import torch

from feature_store.schema import DOMAINS, MISSING, Domain
from model.datasets.prepared import Prepared
from model.datasets.samples import Batch, gather
from model.evaluate import predict
from model.farm import Ranker
from model.report.datacard import history_lengths
from model.report.markup import Html, Table, cell, join, note, number, panels, paragraph, percent
from model.report.page import section
from model.report.subject import Figures, Subject, histories
from model.report.svg import Interval, intervals
from model.study.grid import FARM

TITLE = "Frequency gates (Table 3)"
WITHOUT = "no_frequency"
GATES = {"alpha": "video, low", "beta": "video, high", "gamma": "live, low", "delta": "live, high"}
LETTERS = {"alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ"}
RARE_TASKS, RARE_ACTS = ("ltr", "cmtr", "gtr"), ("like", "comment", "gift")
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def measure(subject: Subject) -> Figures:
    model = subject.model(FARM)
    absent = [name for name in (FARM, WITHOUT) if not subject.seeds(name)]
    missing = subject.missing(*absent) if absent else None
    if model is None:
        return {"missing": missing, "gates": {}, "case": None}
    return {"missing": missing, "gates": _distribution(subject, model), "case": _case(subject)}


@torch.inference_mode()
def gates(model: Ranker, batch: Batch) -> np.ndarray:
    """alpha, beta, gamma, delta of Eq. 10.  [U, 4]; NaN without events of the domain, or without its module."""
    found = np.full((len(batch.user_rows), 4), np.nan)
    if model.farm is None:
        return found
    h = histories(model, batch)
    parts = ((model.farm.video_frequency, h.video, h.video_valid), (model.farm.live_frequency, h.live, h.live_valid))
    for i, (module, events, valid) in enumerate(parts):
        if module is not None:
            pair = torch.cat(module.gates(events, valid), dim=-1)[:, 0].numpy()  # [U, 2]
            found[:, 2 * i : 2 * i + 2] = np.where(valid.any(1).numpy()[:, None], pair, np.nan)
    return found


def _distribution(subject: Subject, model: Ranker) -> Figures:
    """Quantiles of the gates over users, by activity group."""
    rows = subject.user_rows()
    found = np.concatenate([gates(model, batch) for batch in subject.batches(rows)])  # [U, 4]
    group = subject.groups(rows)
    chosen = {"all": np.ones(len(rows), bool)}
    chosen |= {name: group == i for i, name in enumerate(subject.data.info.group_names)}
    return {name: _quantiles(found[mask]) for name, mask in chosen.items() if mask.any()}


def _quantiles(found: np.ndarray) -> Figures:
    """found [U, 4] -> by gate: users with it, and quantiles."""
    columns = {name: found[:, i][np.isfinite(found[:, i])] for i, name in enumerate(GATES)}
    return {
        name: {"users": len(values), "quantiles": np.quantile(values, QUANTILES).tolist()}
        for name, values in columns.items()
        if len(values)
    }


def rare_tasks(data: Prepared) -> list[str]:
    """Like, comment and gift, those the data has; of data without, the two tasks with the fewest positives."""
    named = [task for task in RARE_TASKS if task in data.view.tasks]
    if named:
        return named
    positives = (np.asarray(data.samples["labels"][data.rows("train")]) == 1).sum(0)
    return [data.view.tasks[i] for i in np.argsort(positives, kind="stable")[:2]]


def low_active(subject: Subject) -> np.ndarray:
    """Which test samples are of low-active users: of the group "low", or of the third with the fewest events.  [N]"""
    rows, names = subject.data.rows("test"), subject.data.info.group_names
    group = subject.groups(rows)
    if "low" in names and (group == names.index("low")).any():
        return np.asarray(group == names.index("low"))
    counts = sum(np.diff(subject.data.events[d].offsets) for d in DOMAINS)
    events = np.asarray(counts)[subject.data.samples["user_row"][rows]]
    return np.asarray(events <= np.quantile(events, 1 / 3))


def choose(subject: Subject) -> int | None:
    """The row of the case: of low-active users' test samples, that with the most rare positives, then the longest live
    and video history, then the earliest.  No prediction has a say.  None when no such sample has a rare positive."""
    data = subject.data
    tasks = [data.view.tasks.index(task) for task in rare_tasks(data)]
    rows = data.rows("test")[low_active(subject)]
    positives = (np.asarray(data.samples["labels"][rows])[:, tasks] == 1).sum(1)
    if positives.max(initial=0) == 0:
        return None
    lengths = {domain: history_lengths(data, domain, rows) for domain in DOMAINS}
    return int(rows[np.lexsort((rows, -lengths["video"], -lengths["live"], -positives))[0]])


def _case(subject: Subject) -> Figures | None:
    row = choose(subject)
    if row is None:
        return None
    data = subject.data
    labels = np.asarray(data.samples["labels"][row])
    batch = gather(data, np.array([row]))
    candidate = dict(zip(data.view.columns("candidate"), batch.candidates[0].tolist(), strict=True))
    return {
        "row": row,
        "positive": [task for task, label in zip(data.view.tasks, labels, strict=True) if label == 1],
        "rare_tasks": rare_tasks(data),
        "candidate": {name: None if value == MISSING else str(value) for name, value in candidate.items()},
        "history": {domain: _past(data, domain, row) for domain in DOMAINS},
        "variants": {name: _prediction(subject, name, row) for name in (FARM, WITHOUT) if subject.seeds(name)},
    }


def _past(data: Prepared, domain: Domain, row: int) -> Figures:
    """How many events the model reads in the case's history, and how many of them have a rare act."""
    end, length = int(data.samples[f"{domain}_end"][row]), int(history_lengths(data, domain, np.array([row]))[0])
    bits = sum(1 << i for i, name in enumerate(data.schema.behaviours) if name in RARE_ACTS)
    column = data.events[domain].columns.get("behaviours")
    acts = 0 if column is None else int((np.asarray(column[end - length : end]).astype(np.int64) & bits > 0).sum())
    return {"events": length, "rare_acts": acts}


def _prediction(subject: Subject, variant: str, row: int) -> Figures:
    """What a variant predicts of the case, and of all low-active users' samples with and without the act."""
    model, scores = subject.model(variant), subject.scores(variant)
    assert model is not None
    assert scores is not None
    of_case = gates(model, gather(subject.data, np.array([row])))[0]
    given = predict(model, subject.data, np.array([row]))[0]
    return {
        "gates": {name: None if np.isnan(v) else float(v) for name, v in zip(GATES, of_case, strict=True)},
        "tasks": {
            task: {"probability": float(given[i]), **_among(subject, scores[:, i], i, float(given[i]))}
            for i, task in enumerate(subject.tasks)
            if task in rare_tasks(subject.data)
        },
    }


def _among(subject: Subject, scores: np.ndarray, task: int, given: float) -> Figures:
    """scores [N] of one task: the share of samples below the case, and the means over low-active users' samples."""
    labels = np.asarray(subject.data.samples["labels"][subject.data.rows("test")])[:, task]
    low = low_active(subject)
    means = {
        name: float(scores[low & (labels == label)].mean()) if (low & (labels == label)).any() else None
        for name, label in (("mean_positive", 1), ("mean_negative", 0))
    }
    return {"above": float((scores < given).mean()), **means}


def render(figures: Figures) -> Html:
    missing = [note(figures["missing"])] if figures["missing"] else []
    if not figures["gates"]:
        return section("gates", TITLE, *missing)
    explained = paragraph(
        "α and γ weigh the low frequencies of the video and of the live history, β and δ the high ones (Eq. 10), from 0"
        " to 1. Shown are the median over users (mark), the middle half (thick) and the middle 90%."
    )
    charts = [_chart(figures["gates"], name) for name in GATES if any(name in g for g in figures["gates"].values())]
    return section("gates", TITLE, explained, panels(*charts), _case_part(figures["case"]), *missing)


def _chart(groups: Figures, gate: str) -> Html:
    rows = []
    for name, of in groups.items():
        if gate in of:
            low, first, middle, third, high = of[gate]["quantiles"]
            rows.append(Interval(name, middle, low, high, (first, third), style=5 if name == "all" else 0))
    return intervals(f"{LETTERS[gate]}: weight of {GATES[gate]} frequencies", rows, "gate")


def _case_part(case: Figures | None) -> Html:
    if case is None:
        return note("No low-active user has a rare positive on the test days, so there is no case to show.")
    past = ", ".join(f"{h['events']} {d} events ({h['rare_acts']} with a rare act)" for d, h in case["history"].items())
    candidate = ", ".join(f"{name} {value or 'missing'}" for name, value in case["candidate"].items())
    text = (
        f"The case is chosen without looking at predictions: the low-active user's test sample (number {case['row']})"
        f" with the most positive rare tasks ({', '.join(case['rare_tasks'])}), of these the one with the longest"
        f" live, then video history, then the earliest. Its positives: {', '.join(case['positive'])}."
        f" Candidate: {candidate}. History: {past}."
    )
    rows = [_case_row(name, of, case["rare_tasks"]) for name, of in case["variants"].items()]
    columns = ["variant", *(f"ŷ {task}" for task in case["rare_tasks"]), *LETTERS.values()]
    caption = "The case: predicted probability (%), below it the share of test samples that score lower; and the gates"
    return join(paragraph(text), Table(caption, columns, rows).html(), _means_table(case))


def _case_row(name: str, of: Figures, tasks: list[str]) -> list[str]:
    predicted = [
        cell(percent(of["tasks"][t]["probability"]), f"above {percent(of['tasks'][t]['above'], 1)}") for t in tasks
    ]
    return [name, *predicted, *(number(value) for value in of["gates"].values())]


def _means_table(case: Figures) -> Html:
    rows = [
        [name, *(f"{percent(t['mean_positive'])} / {percent(t['mean_negative'])}" for t in of["tasks"].values())]
        for name, of in case["variants"].items()
    ]
    caption = "All low-active users' test samples: mean predicted probability (%) of positives / of negatives"
    return Table(caption, ["variant", *case["rare_tasks"]], rows).html()
