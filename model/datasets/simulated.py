"""Logs in the project's own Parquet format (docs/data.md), the simulator's among them, as PREPARED data."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl

from feature_store.schema import DOMAINS, Domain, RecordSchema, default_schema
from feature_store.view import ModelView
from model.datasets import fields
from model.datasets.prepared import Prepared, PreparedInfo
from model.datasets.source import (
    DURATION_LIMITS,
    FLAG_LIMITS,
    ID_LIMITS,
    ROW,
    SMALL_LIMITS,
    TIME_LIMITS,
    Limits,
    OnError,
    Progress,
    SourceError,
    finish,
    first_problem,
    integer_problems,
    join_repeats,
    keep_sound,
    local_day,
    outcome_columns,
    quiet,
)

META_FILE = "meta.json"
FORMAT_VERSION = 1
TASK_ACTS = {
    "ctr": "click",
    "etr": "effective_view",
    "lvtr": "long_view",
    "ltr": "like",
    "cmtr": "comment",
    "gtr": "gift",
}
RECOMMENDED_TRAINING = {"batch_size": 128, "learning_rate": 2e-3, "epochs": 2}

_GROUP_LIMITS = (0, 2**7 - 1)
_AUTHOR_LIMITS: Limits = {"author_id": ID_LIMITS, "live_id": ID_LIMITS, "tag": SMALL_LIMITS, "cluster": SMALL_LIMITS}
_USER_LIMITS: Limits = {"user_id": ID_LIMITS, "activity_group": _GROUP_LIMITS}
_VIEW_LIMITS: Limits = {
    "user_id": ID_LIMITS,
    "author_id": ID_LIMITS,
    "view_id": ID_LIMITS,
    "event_time": TIME_LIMITS,
    "play_time": DURATION_LIMITS,
    "page": SMALL_LIMITS,
    "tag": SMALL_LIMITS,
}
_LIVE_LIMITS: Limits = {"live_id": ID_LIMITS, "cluster": SMALL_LIMITS}


def default_view(utc_offset_s: int = 0) -> ModelView:
    """The paper's fields (section 2.2) and widths (D1 = 92, D2 = 64), for the default record schema."""
    bits = len(default_schema().behaviours)
    page = fields.category("page", 4, 16, table="page")
    return ModelView(
        history_length=50,
        utc_offset_s=utc_offset_s,
        tasks=tuple(TASK_ACTS),
        video=(
            *(fields.AUTHOR_ID, fields.play_time(16), fields.lag(16), page, fields.TAG),
            fields.behaviours(16, bits),
        ),
        live=(
            *(fields.AUTHOR_ID, fields.TAG, fields.play_time(5), fields.lag(5), page),
            *(fields.category("cluster", 4, 63), fields.behaviours(6, bits)),
        ),
        candidate=(fields.AUTHOR_ID, fields.LIVE_ID, fields.TAG, fields.category("cluster", 8, 63)),
        user=(fields.USER_ID, fields.category("activity_group", 8, 7)),
        context=(page, fields.LOCAL_HOUR),
    )


def prepare_simulated(
    data: str | Path, out: str | Path, test_from: date, on_error: OnError = "stop", progress: Progress = quiet
) -> Prepared:
    """Turn a folder of Parquet logs into a PREPARED folder of the default record schema.

    data: video_events, live_events, users, authors (.parquet), and optionally meta.json, whose `utc_offset_s` says
    what a local day is (UTC without it).  test_from: first test day; the local day before it is for validation.
    Corrupt rows stop with SourceError, or are left out and counted (`on_error`); a missing file or column stops.

    Example: ``prepare_simulated("logs", "prepared", date(2025, 1, 8))``
    """
    folder, schema = Path(data), default_schema()
    meta = _read_meta(folder)
    counts: dict[str, int] = {}
    acts: Limits = dict.fromkeys(schema.behaviours, FLAG_LIMITS)
    limits: dict[Domain, Limits] = {"video": {**_VIEW_LIMITS, **acts}, "live": {**_VIEW_LIMITS, **_LIVE_LIMITS, **acts}}
    views: dict[Domain, pl.DataFrame] = {}
    for domain in DOMAINS:
        progress(f"reading {domain}_events.parquet")
        rows = _read(folder, f"{domain}_events", limits[domain], on_error, counts)
        views[domain] = _outcomes(rows, domain, schema, counts)
    users = _read(folder, "users", _USER_LIMITS, on_error, counts)
    authors = _read(folder, "authors", _AUTHOR_LIMITS, on_error, counts).unique(["author_id", "live_id"], keep="last")
    progress(f"{len(views['video']):,} video views, {len(views['live']):,} live views; writing {out}")
    info = PreparedInfo(
        source=meta["source"],
        test_from=test_from,
        tasks=tuple(TASK_ACTS),
        splits={},
        counts=counts,
        training=RECOMMENDED_TRAINING,
        group_names=meta["group_names"],
    )
    events = {d: views[d].select("user_id", *(field.name for field in schema.fields(d))) for d in DOMAINS}
    labels = [pl.col(act).alias(task) for task, act in TASK_ACTS.items()]
    utc_offset_s = meta["utc_offset_s"]
    samples = views["live"].with_columns(*labels, request_time="event_time", day=local_day("event_time", utc_offset_s))
    view = default_view(utc_offset_s)
    frames: dict[str, Any] = {"events": events, "users": users, "authors": authors, "samples": samples}
    return finish(out, info=info, schema=schema, view=view, **frames)


def _read_meta(folder: Path) -> dict[str, Any]:
    known: dict[str, Any] = {"source": "parquet", "utc_offset_s": 0, "group_names": ()}
    if not (folder / META_FILE).is_file():
        return known
    try:
        meta = json.loads((folder / META_FILE).read_text())
    except ValueError as error:
        raise SourceError(f"{folder / META_FILE}: not JSON: {error}") from None
    if meta.get("format_version", FORMAT_VERSION) != FORMAT_VERSION:
        raise SourceError(f"{folder / META_FILE}: format {meta['format_version']}, and this reads {FORMAT_VERSION}")
    return known | {name: meta[name] for name in known if name in meta}


def _read(folder: Path, name: str, limits: Limits, on_error: OnError, counts: dict[str, int]) -> pl.DataFrame:
    """The sound rows of a file, its columns as int64."""
    path = folder / f"{name}.parquet"
    if not path.is_file():
        raise SourceError(f"{path}: not there")
    try:
        types = pl.read_parquet_schema(path)
    except pl.exceptions.PolarsError as error:
        raise SourceError(f"{path}: not a Parquet file: {error}") from None
    wrong = [c for c in limits if c not in types or not (types[c].is_integer() or types[c] == pl.Boolean)]
    if wrong:
        raise SourceError(f"{path}: no integer column {', '.join(wrong)}")
    rows = pl.read_parquet(path, columns=list(limits)).with_row_index(ROW)
    rows = rows.with_columns(first_problem(integer_problems(limits)))
    sound, counts[f"corrupt_{name}"] = keep_sound(rows, str(path), "row", on_error)
    return sound.cast(pl.Int64)


def _outcomes(rows: pl.DataFrame, domain: Domain, schema: RecordSchema, counts: dict[str, int]) -> pl.DataFrame:
    views = join_repeats(rows, ("user_id", "view_id"), (*schema.behaviours, "play_time"))
    counts[f"{domain}_repeats"] = len(rows) - len(views)
    acts = {name: pl.col(name) for name in schema.behaviours}
    return views.with_columns(outcome_columns(schema, "play_time", acts))
