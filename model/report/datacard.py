"""Data card: what the samples are, how often each task is positive, how long the histories are.

Letters: N samples, T tasks.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np

from feature_store.schema import DOMAINS, Domain
from model.datasets.prepared import SPLITS, Prepared
from model.report.markup import Html, Table, element, join, note, number, panels, paragraph, percent
from model.report.page import section
from model.report.subject import Figures, Subject
from model.report.svg import Series, steps

TITLE = "Data card"
_BINS = 25
_MACHINE = ("host", "hostname", "machine", "machine_name", "node", "user", "path", "cwd")


def measure(subject: Subject) -> Figures:
    data, info = subject.data, subject.data.info
    environment = subject.record.get("environment", {})
    return {
        "source": info.source,
        "test_from": str(info.test_from),
        "command": subject.command,
        "environment": {k: v for k, v in environment.items() if k not in _MACHINE},
        "counts": info.counts,
        "notes": list(info.notes),
        "training": info.training,
        "history_length": data.view.history_length,
        "splits": {name: _split(data, data.rows(name)) for name in SPLITS},
        "behaviours": {domain: _behaviours(data, domain) for domain in DOMAINS},
        "histories": {domain: _lengths(data, domain) for domain in DOMAINS},
        "groups": _groups(subject),
    }


def _split(data: Prepared, rows: np.ndarray) -> Figures:
    """Days and rates of one split."""
    labels = np.asarray(data.samples["labels"][rows])  # [N, T]
    tasks = {}
    for index, task in enumerate(data.view.tasks):
        known = labels[:, index] >= 0
        positives = int((labels[:, index] == 1).sum())
        tasks[task] = {
            "positives": positives,
            "known": int(known.sum()),
            "rate": positives / int(known.sum()) if known.any() else None,
        }
    return {"samples": len(rows), "days": _days(data, rows), "tasks": tasks}


def _days(data: Prepared, rows: np.ndarray) -> list[str]:
    """First and last local day."""
    if len(rows) == 0:
        return []
    times = data.samples["request_time"][rows[[0, -1]]]
    offset = timedelta(seconds=data.view.utc_offset_s)
    return [str((datetime.fromtimestamp(int(t) / 1000, UTC) + offset).date()) for t in times]


def _behaviours(data: Prepared, domain: Domain) -> Figures:
    """Events of a domain, and the share of them with each behaviour (Figure 1 of the paper)."""
    events = data.events[domain]
    bits = events.columns.get("behaviours")
    if bits is None or len(events) == 0:
        return {"events": len(events), "shares": {}}
    shares = {name: float(((bits >> i) & 1).mean()) for i, name in enumerate(data.schema.behaviours)}
    return {"events": len(events), "shares": shares}


def history_lengths(data: Prepared, domain: Domain, rows: np.ndarray) -> np.ndarray:
    """Events that a model reads for each sample.  [N]"""
    starts = data.events[domain].offsets[data.samples["user_row"][rows]]
    lengths: np.ndarray = np.minimum(data.samples[f"{domain}_end"][rows] - starts, data.view.history_length)
    return lengths


def _lengths(data: Prepared, domain: Domain) -> Figures:
    lengths = history_lengths(data, domain, data.rows("test"))
    slots = data.view.history_length
    edges = np.unique(np.linspace(0, slots + 1, min(_BINS, slots + 1) + 1).round().astype(int))
    counts = np.histogram(lengths, edges)[0]
    return {
        "median": float(np.median(lengths)) if len(lengths) else None,
        "empty": float((lengths == 0).mean()) if len(lengths) else None,
        "full": float((lengths == slots).mean()) if len(lengths) else None,
        "edges": edges.tolist(),
        "shares": (counts / max(len(lengths), 1)).tolist(),
    }


def _groups(subject: Subject) -> Figures:
    rows = subject.data.rows("test")
    group, users = subject.groups(rows), np.asarray(subject.data.samples["user_row"][rows])
    names = subject.data.info.group_names
    return {
        name: {"samples": int((group == i).sum()), "users": len(np.unique(users[group == i]))}
        for i, name in enumerate(names)
    }


def render(figures: Figures) -> Html:
    return section(
        "datacard",
        TITLE,
        paragraph(
            f"Source {figures['source']}, test days from {figures['test_from']}; the day before them chose the epoch. A"
            f" model reads at most {figures['history_length']} events of each domain."
        ),
        element("p", "Study made with ", element("code", figures["command"])),
        _splits_table(figures),
        _behaviours_table(figures),
        _histories_part(figures),
        _groups_table(figures),
        _facts(figures),
        *(note(text) for text in figures["notes"]),
    )


def _splits_table(figures: Figures) -> Html:
    tasks = list(figures["splits"]["test"]["tasks"])
    rows = []
    for name, split in figures["splits"].items():
        days = " to ".join(dict.fromkeys(split["days"]))
        rates = [
            join(percent(t["rate"]), " %", element("br"), element("small", f"{t['positives']:,}"))
            for t in split["tasks"].values()
        ]
        rows.append([name, days, f"{split['samples']:,}", *rates])
    caption = "Samples, and per task the share that is positive and how many are"
    return Table(caption, ["split", "days", "samples", *tasks], rows, texts=2).html()


def _behaviours_table(figures: Figures) -> Html:
    domains = figures["behaviours"]
    names = list(dict.fromkeys(name for d in domains.values() for name in d["shares"]))
    total = sum(d["events"] for d in domains.values()) or 1
    rows = [
        [domain, f"{d['events']:,}", percent(d["events"] / total, 1), *(percent(d["shares"].get(n)) for n in names)]
        for domain, d in domains.items()
    ]
    caption = "Events, share of all exposure, and share of events with each behaviour (%; Figure 1 of the paper)"
    return Table(caption, ["domain", "events", "exposure", *names], rows).html()


def _histories_part(figures: Figures) -> Html:
    series = [Series(domain, [], h["shares"], style=i) for i, (domain, h) in enumerate(figures["histories"].items())]
    edges = figures["histories"]["video"]["edges"]
    rows = [
        [domain, number(h["median"], 0), percent(h["empty"], 1), percent(h["full"], 1)]
        for domain, h in figures["histories"].items()
    ]
    caption = "Events that the model reads, over test samples"
    return join(
        panels(steps("History lengths of test samples", edges, series, "events", "share of samples")),
        Table(caption, ["domain", "median", "no event (%)", "full (%)"], rows).html(),
    )


def _groups_table(figures: Figures) -> Html:
    if not figures["groups"]:
        return note("The data has no activity groups.")
    rows = [[name, f"{g['users']:,}", f"{g['samples']:,}"] for name, g in figures["groups"].items()]
    return Table("Activity groups on the test days", ["group", "users", "samples"], rows).html()


def _facts(figures: Figures) -> Html:
    facts = {
        **{name.replace("_", " "): f"{count:,}" for name, count in figures["counts"].items()},
        **{f"recommended {name}": str(value) for name, value in figures["training"].items()},
        **{name.replace("_", " "): _fact(value) for name, value in figures["environment"].items()},
    }
    rows = [[name, value] for name, value in facts.items()]
    return Table("Counts, recommended training settings, environment", ["what", "value"], rows).html()


def _fact(value: object) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
