"""What every source of PREPARED data shares: corrupt rows, repeats, outcomes of views, local days."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import reduce
from operator import or_
from typing import Literal

import polars as pl

from feature_store.schema import MISSING, RecordSchema

OnError = Literal["stop", "skip"]
Progress = Callable[[str], None]
Limits = Mapping[str, tuple[int, int]]
"""Least and greatest sound value by column."""

ROW = "_row"
"""The column that carries where a row came from: its line in a text file, its row in a Parquet file."""

ID_LIMITS = (MISSING + 1, 2**63 - 1)
TIME_LIMITS = (0, 2**42)  # ms since 1970, to the year 2109: microseconds taken for milliseconds are refused
DURATION_LIMITS = (0, 2**31 - 1)  # ms, as stored (i4)
SMALL_LIMITS = (0, 2**15 - 1)  # pages, tags, clusters, as stored (i2)
FLAG_LIMITS = (0, 1)


class SourceError(ValueError):
    """A source cannot be prepared: a file is not there, or rows are corrupt."""


def quiet(_: str) -> None:
    """The progress of a caller that asks for none."""


@dataclass(frozen=True)
class Check:
    """What makes a row corrupt (a condition, never null), and how to say it.  Only corrupt rows are put in words."""

    corrupt: pl.Expr
    problem: pl.Expr


def integer_check(name: str, limits: tuple[int, int]) -> Check:
    """A column that must hold an integer within `limits`, or the text of one."""
    low, high = limits
    sound = pl.col(name).cast(pl.Int64, strict=False).is_between(low, high).fill_null(False)
    shown = pl.col(name).cast(pl.String).fill_null("missing")
    return Check(~sound, pl.format(f"{name} is {{}}, not an integer from {low} to {high}", shown))


def integer_checks(limits: Limits) -> list[Check]:
    return [integer_check(name, bounds) for name, bounds in limits.items()]


def keep_sound(
    rows: pl.LazyFrame, checks: Sequence[Check], where: str, unit: str, on_error: OnError
) -> tuple[pl.LazyFrame, int]:
    """The rows that pass all checks, without ROW, and how many are left out.  Scans the rows once to know.

    where: the file.  unit: what ROW counts, "line" or "row".  With "stop", SourceError names the file, the first
    corrupt row, what is wrong with it, and how many there are.
    """
    corrupt = pl.any_horizontal([check.corrupt for check in checks])
    figures = rows.select(rows=pl.len(), corrupt=corrupt.sum(), first=pl.col(ROW).filter(corrupt).min())
    total, dropped, first = figures.collect(engine="streaming").row(0)
    if not dropped:
        return rows.drop(ROW), 0
    if on_error == "stop":
        words = pl.coalesce([pl.when(check.corrupt).then(check.problem) for check in checks])
        problem = rows.filter(pl.col(ROW) == first).select(words).collect(engine="streaming").item()
        raise SourceError(
            f"{where}: {unit} {first}: {problem}; {dropped} of {total} rows are corrupt"
            " (to leave them out: on_error='skip')"
        )
    return rows.filter(~corrupt).drop(ROW), dropped


def narrow(limits: Limits) -> list[pl.Expr]:
    """Integer columns, sound by `limits`, in the narrowest signed dtype that holds them."""
    return [pl.col(name).cast(_narrowest(bounds)) for name, bounds in limits.items()]


def _narrowest(limits: tuple[int, int]) -> type[pl.DataType]:
    low, high = limits
    for bits, dtype in ((8, pl.Int8), (16, pl.Int16), (32, pl.Int32)):
        if -(2 ** (bits - 1)) <= low and high < 2 ** (bits - 1):
            return dtype
    return pl.Int64


def join_repeats(
    rows: pl.DataFrame, view: Sequence[str], joined: Sequence[str], earliest: Sequence[str] = ()
) -> pl.DataFrame:
    """One row per view, in order of first appearance: repeats join as they do in a store.

    `joined` by maximum, `earliest` by minimum, of other columns the first.
    """
    if not rows.select(view).is_duplicated().any():
        return rows
    others = [name for name in rows.columns if name not in (*view, *joined, *earliest)]
    return rows.group_by(view, maintain_order=True).agg(
        pl.col(others).first(), pl.col(joined).max(), pl.col(earliest).min()
    )


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
