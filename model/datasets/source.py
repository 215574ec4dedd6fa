"""What every source of PREPARED data shares: corrupt rows, outcomes of views, splits, and the way out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any, Literal

import polars as pl

from feature_store.schema import MISSING, Domain, RecordSchema
from feature_store.view import ModelView
from model.datasets.prepared import Prepared, PreparedInfo, write_prepared

OnError = Literal["stop", "skip"]
Progress = Callable[[str], None]
Limits = Mapping[str, tuple[int, int]]
"""Least and greatest sound value by column."""

ROW = "_row"
"""The column that carries where a row came from: its line in a text file, its row in a Parquet file."""
PROBLEM = "_problem"

ID_LIMITS = (MISSING + 1, 2**63 - 1)
TIME_LIMITS = (0, 2**42)  # ms since 1970, to the year 2109: microseconds taken for milliseconds are refused
DURATION_LIMITS = (0, 2**31 - 1)  # ms, as stored (i4)
SMALL_LIMITS = (0, 2**15 - 1)  # pages, tags, clusters, as stored (i2)
FLAG_LIMITS = (0, 1)


class SourceError(ValueError):
    """A source cannot be prepared: a file is not there, rows are corrupt, or a split would be empty."""


def quiet(_: str) -> None:
    """The progress of a caller that asks for none."""


def integer_problem(name: str, limits: tuple[int, int]) -> pl.Expr:
    """What is wrong with a column that must hold an integer within `limits`; null where nothing is."""
    low, high = limits
    sound = pl.col(name).cast(pl.Int64, strict=False).is_between(low, high).fill_null(False)
    shown = pl.col(name).cast(pl.String).fill_null("missing")
    return pl.when(~sound).then(pl.format(f"{name} is {{}}, not an integer from {low} to {high}", shown))


def first_problem(problems: Sequence[pl.Expr]) -> pl.Expr:
    return pl.coalesce(*problems).alias(PROBLEM)


def integer_problems(limits: Limits) -> list[pl.Expr]:
    return [integer_problem(name, bounds) for name, bounds in limits.items()]


def keep_sound(frame: pl.DataFrame, where: str, unit: str, on_error: OnError) -> tuple[pl.DataFrame, int]:
    """The rows without a PROBLEM, and how many were dropped.

    where: the file.  unit: what ROW counts, "line" or "row".  With "stop", SourceError names the file, the first
    corrupt row, what is wrong with it, and how many there are.
    """
    corrupt = frame.filter(pl.col(PROBLEM).is_not_null())
    if len(corrupt) and on_error == "stop":
        row, problem = corrupt.sort(ROW).select(ROW, PROBLEM).row(0)
        raise SourceError(
            f"{where}: {unit} {row}: {problem}; {len(corrupt)} of {len(frame)} rows are corrupt"
            " (to leave them out: on_error='skip')"
        )
    return frame.filter(pl.col(PROBLEM).is_null()).drop(ROW, PROBLEM), len(corrupt)


def join_repeats(rows: pl.DataFrame, view: Sequence[str], joined: Sequence[str]) -> pl.DataFrame:
    """One row per view, in order of first appearance: repeats join as they do in a store, `joined` by maximum."""
    if not rows.select(view).is_duplicated().any():
        return rows
    others = [name for name in rows.columns if name not in (*view, *joined)]
    return rows.group_by(view, maintain_order=True).agg(pl.col(others).first(), pl.col(joined).max())


def outcome_columns(schema: RecordSchema, play_time: str, acts: Mapping[str, pl.Expr]) -> list[pl.Expr]:
    """`known_after` [ms] and `behaviours` (bit set) of a view, from its play time and one 0/1 expression per act.

    An outcome is known when the view ends, and never at its very start: a view of no play time would otherwise be
    known at its own request, and be in its own history and in those of its slate-mates.
    """
    known_after = pl.max_horizontal(pl.col(play_time), pl.lit(1)).alias("known_after")
    bits = [acts[name].cast(pl.Int32) * (1 << bit) for bit, name in enumerate(schema.behaviours) if name in acts]
    return [known_after, reduce(or_, bits).alias("behaviours")]


def local_midnight(day: date, utc_offset_s: int) -> int:
    """The ms since 1970 at which a local day begins."""
    return int((datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() - utc_offset_s) * 1000)


def local_day(time_ms: str, utc_offset_s: int) -> pl.Expr:
    """The local date of a column of ms since 1970."""
    return pl.from_epoch(pl.col(time_ms) + utc_offset_s * 1000, time_unit="ms").dt.date()


def finish(
    out: str | Path,
    *,
    info: PreparedInfo,
    schema: RecordSchema,
    view: ModelView,
    events: dict[Domain, pl.DataFrame],
    users: pl.DataFrame,
    authors: pl.DataFrame,
    samples: pl.DataFrame,
) -> Prepared:
    """Write and open.  SourceError when a split would be empty."""
    _refuse_empty_splits(samples["day"], info.test_from)
    sizes = {f"{domain}_events": len(frame) for domain, frame in events.items()}
    sizes |= {"samples": len(samples), "users": users["user_id"].n_unique(), "lives": len(authors)}
    frames: dict[str, Any] = {"events": events, "users": users, "authors": authors, "samples": samples}
    info = info.model_copy(update={"counts": info.counts | sizes})
    return Prepared.open(write_prepared(out, info=info, schema=schema, view=view, **frames))


def _refuse_empty_splits(days: pl.Series, test_from: date) -> None:
    if days.is_empty():
        raise SourceError("no impression of the live domain: there is nothing to learn from")
    valid = test_from - timedelta(days=1)
    rows = {"training": (days < valid).sum(), "validation": (days == valid).sum(), "test": (days >= test_from).sum()}
    empty = [name for name, count in rows.items() if not count]
    if empty:
        there = days.sort()
        raise SourceError(
            f"test from {test_from}: no {' and no '.join(empty)} sample; samples are of {there[0]} to {there[-1]}, and"
            f" validation is the day before the first test day"
        )
