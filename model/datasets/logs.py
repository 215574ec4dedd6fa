"""Logs in the project's own format (docs/data.md), the simulator's among them, as PREPARED data."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, Literal

import polars as pl
from pydantic import BaseModel, ValidationError

from feature_store.schema import DOMAINS, Domain, RecordSchema, default_schema
from feature_store.view import ModelView
from model.datasets import fields
from model.datasets.buckets import ROWS_PER_BUCKET, Bucket, Tables
from model.datasets.log_tables import Table, TableFormat, scan_table, table_files
from model.datasets.prepared import Prepared, PreparedInfo
from model.datasets.source import (
    DURATION_LIMITS,
    FLAG_LIMITS,
    ID_LIMITS,
    SMALL_LIMITS,
    TIME_LIMITS,
    Limits,
    OnError,
    Progress,
    SourceError,
    join_repeats,
    local_day,
    outcome_columns,
    quiet,
)
from model.datasets.text_ids import distinct_hashes, hash_columns
from model.datasets.writer import write_prepared

META_FILE = "meta.json"
FORMAT_VERSION: Literal[1] = 1
TASK_ACTS = {
    "ctr": "click",
    "etr": "effective_view",
    "lvtr": "long_view",
    "ltr": "like",
    "cmtr": "comment",
    "gtr": "gift",
}
RECOMMENDED_TRAINING = {
    "batch_size": 256,
    "learning_rate": 2e-3,
    "epochs": 2,
    "table_std": 0.2,
    "dropout": 0.1,
    "field_missing_rate": 0.01,
    "record_missing_rate": 0.01,
}

_VIEW_IDS: Limits = dict.fromkeys(("user_id", "author_id", "view_id"), ID_LIMITS)
_VIEW: Limits = {
    "event_time": TIME_LIMITS,
    "play_time": DURATION_LIMITS,
    "page": SMALL_LIMITS,
    "tag": SMALL_LIMITS,
    **dict.fromkeys(default_schema().behaviours, FLAG_LIMITS),
}
_ROOM_IDS: Limits = {"author_id": ID_LIMITS, "live_id": ID_LIMITS}
_ROOM: Limits = {"tag": SMALL_LIMITS, "cluster": SMALL_LIMITS}
FORMATS = {
    "video_events": TableFormat(_VIEW_IDS, _VIEW, {}),
    "live_events": TableFormat(
        {**_VIEW_IDS, **_ROOM_IDS},
        {**_VIEW, **_ROOM},
        {"request_time": TIME_LIMITS},
        in_order=(("request_time", "event_time"),),
    ),
    "users": TableFormat({"user_id": ID_LIMITS}, {"activity_group": (0, 2**7 - 1)}, {}),
    "authors": TableFormat(_ROOM_IDS, _ROOM, {}),
    "live_truth": TableFormat(dict.fromkeys(("user_id", "view_id"), ID_LIMITS), {}, {}, tuple(TASK_ACTS)),
}
OPTIONAL_TABLES = ("live_truth",)


def default_view(utc_offset_s: int = 0) -> ModelView:
    """The paper's fields (section 2.2) and widths (D1 = 92, D2 = 64), for the default record schema."""
    bits = len(default_schema().behaviours)
    page, cluster = fields.category("page", 4, 16, table="page"), fields.category("cluster", 8, 63, table="cluster")
    return ModelView(
        history_length=50,
        utc_offset_s=utc_offset_s,
        tasks=tuple(TASK_ACTS),
        video=(
            *(fields.AUTHOR_ID, fields.play_time(16), fields.lag(16), page, fields.TAG),
            fields.behaviours(16, bits),
        ),
        live=(
            *(fields.AUTHOR_ID, fields.TAG, fields.play_time(3), fields.lag(4), page),
            *(cluster, fields.behaviours(5, bits)),
        ),
        candidate=(fields.AUTHOR_ID, fields.LIVE_ID, fields.TAG, cluster),
        user=(fields.USER_ID, fields.category("activity_group", 8, 7)),
        context=(page, fields.LOCAL_HOUR),
    )


class Meta(BaseModel):
    """What is read of meta.json."""

    format_version: Literal[1] = FORMAT_VERSION
    source: str = "logs"
    utc_offset_s: int = 0
    group_names: tuple[str, ...] = ()
    string_ids: tuple[Literal["user_id", "author_id", "live_id", "view_id"], ...] = ()  # which are text, in CSV files
    simulation: Any = None


def prepare_logs(
    data: str | Path,
    out: str | Path,
    test_from: date,
    on_error: OnError = "stop",
    progress: Progress = quiet,
    rows_per_bucket: int = ROWS_PER_BUCKET,
) -> Prepared:
    """Turn a folder of logs in the project's format into a PREPARED folder of the default record schema.

    data: the tables video_events, live_events, users, authors, each a .parquet file, a .csv file or a folder of parts,
    and optionally live_truth and meta.json, whose `utc_offset_s` says what a local day is (UTC without it).
    test_from: first test day; the local day before it is for validation.
    Corrupt rows stop with SourceError, or are left out and counted (`on_error`); a missing table or column stops.
    rows_per_bucket: rows that are in memory at a time; the folder is the same for any.

    Example: ``prepare_logs("logs", "prepared", date(2025, 1, 8))``
    """
    folder = Path(data)
    meta = read_meta(folder)
    tables = _scan_tables(folder, meta, on_error, progress)
    text_ids = _text_ids(tables)
    counts = {f"corrupt_{name}": table.corrupt for name, table in tables.items()}
    counts |= {f"hash_collisions_{column}": 0 for column in sorted(text_ids)}  # with any, there is an error
    user_hashes = _refuse_collisions(tables, text_ids)
    schema = default_schema().model_copy(update={"ids": "string" if text_ids else "integer"})
    users, authors = (hash_columns(tables.pop(name).rows.collect(), text_ids) for name in ("users", "authors"))
    info = PreparedInfo(
        source=meta.source,
        test_from=test_from,
        tasks=tuple(TASK_ACTS),
        splits={},
        counts=counts,
        training=RECOMMENDED_TRAINING,
        group_names=meta.group_names,
    )
    write_prepared(
        out,
        info=info,
        schema=schema,
        view=default_view(meta.utc_offset_s),
        tables={name: _by_user(table.rows, user_hashes) for name, table in tables.items()},
        build=partial(_build, schema, meta.utc_offset_s, text_ids),
        users=users,
        authors=authors.unique(["author_id", "live_id"], keep="last", maintain_order=True),
        rows_per_bucket=rows_per_bucket,
        progress=progress,
        simulation=meta.simulation,
    )
    return Prepared.open(out)


def _scan_tables(folder: Path, meta: Meta, on_error: OnError, progress: Progress) -> dict[str, Table]:
    tables = {}
    for name, table in FORMATS.items():
        if name not in OPTIONAL_TABLES or table_files(folder, name):
            progress(f"checking {name}")
            tables[name] = scan_table(folder, name, table, meta.string_ids, on_error)
    return tables


def read_meta(folder: Path) -> Meta:
    """What meta.json says; the defaults when it is not there.  SourceError names what is wrong in it."""
    path = folder / META_FILE
    if not path.is_file():
        return Meta()
    try:
        return Meta.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise SourceError(f"{path}: {where + ': ' if where else ''}{first['msg']}") from None


def _text_ids(tables: Mapping[str, Table]) -> frozenset[str]:
    """The id columns that are text; SourceError when one is text here and an integer there."""
    texts = {name: table.text_ids for name, table in tables.items()}
    found = frozenset[str]().union(*texts.values())
    for column in sorted(found):
        mixed = [name for name in tables if column in FORMATS[name].ids and column not in texts[name]]
        if mixed:
            raise SourceError(
                f"{column}: text in some tables, and an integer in {', '.join(mixed)}; make it text there"
            )
    return found


def _refuse_collisions(tables: Mapping[str, Table], text_ids: frozenset[str]) -> pl.DataFrame | None:
    """SourceError when two ids have one hash; -> the hashes of user_id, if it is text.

    A view's id is unique within its user, and looked at in _build.
    """
    hashes = {}
    for column in sorted(text_ids - {"view_id"}):
        holding = [table.rows for name, table in tables.items() if column in FORMATS[name].ids]
        hashes[column] = distinct_hashes(holding, column)
    return hashes.get("user_id")


def _by_user(rows: pl.LazyFrame, user_hashes: pl.DataFrame | None) -> pl.LazyFrame:
    """The same rows in the same order, `user_id` an integer."""
    if user_hashes is None:
        return rows
    hashed = rows.join(user_hashes.lazy(), on="user_id", how="left", maintain_order="left")
    return hashed.drop("user_id").rename({"hash": "user_id"})


def _build(schema: RecordSchema, utc_offset_s: int, text_ids: frozenset[str], tables: Tables) -> Bucket:
    if "view_id" in text_ids:
        for frame in tables.values():
            distinct_hashes([frame.lazy()], "view_id")
    frames = {name: hash_columns(frame, text_ids) for name, frame in tables.items()}
    counts: dict[str, int] = {}
    views: dict[Domain, pl.DataFrame] = {d: _views(frames[f"{d}_events"], d, schema, counts) for d in DOMAINS}
    events = {d: views[d].select("user_id", *(field.name for field in schema.fields(d))) for d in DOMAINS}
    samples = _samples(views["live"], schema, utc_offset_s)
    if "live_truth" in frames:
        samples = _with_truth(samples, frames["live_truth"], counts)
    return Bucket(events, samples, counts)


def _views(rows: pl.DataFrame, domain: Domain, schema: RecordSchema, counts: dict[str, int]) -> pl.DataFrame:
    """Repeats of a view are from its earliest start to its latest end, whatever their order, as in a store."""
    keys, times = ("user_id", "view_id"), [name for name in ("event_time", "request_time") if name in rows.columns]
    rows = rows.with_columns(known_at=pl.col("event_time") + pl.max_horizontal("play_time", pl.lit(1)))
    views = join_repeats(rows, keys, [name for name in rows.columns if name not in (*keys, *times)], times)
    counts[f"{domain}_repeats"] = len(rows) - len(views)
    acts = {name: pl.col(name) for name in schema.behaviours}
    span = (pl.col("known_at") - pl.col("event_time")).clip(upper_bound=DURATION_LIMITS[1])
    return views.with_columns(span=span).with_columns(outcome_columns(schema, "span", acts))


def _samples(views: pl.DataFrame, schema: RecordSchema, utc_offset_s: int) -> pl.DataFrame:
    """Every live view, as it was asked for."""
    asked = pl.col("request_time" if "request_time" in views.columns else "event_time")
    views = views.with_columns(request_time=asked).with_columns(day=local_day("request_time", utc_offset_s))
    labels = [pl.col(act).alias(task) for task, act in TASK_ACTS.items()]
    author = [field.name for field in schema.author]
    return views.select("user_id", "view_id", "request_time", "day", "page", *author, *labels)


def _with_truth(samples: pl.DataFrame, truth: pl.DataFrame, counts: dict[str, int]) -> pl.DataFrame:
    known = truth.unique(["user_id", "view_id"], keep="first", maintain_order=True)
    counts["truth_without_view"] = len(known.join(samples, on=["user_id", "view_id"], how="anti"))
    known = known.rename({task: f"truth_{task}" for task in TASK_ACTS if task in known.columns})
    return samples.join(known, on=["user_id", "view_id"], how="left", maintain_order="left")
