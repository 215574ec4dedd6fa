"""What the entries of KuaiLive-M3 say of the whole release: its clock, its days, its unit of time."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from model.datasets.kuailive_tables import Table, time_forms, time_ms
from model.datasets.kuailive_view import UTC_OFFSET_S
from model.datasets.source import SourceError

START, END = "live_play_start_timestamp", "live_play_end_timestamp"


@dataclass(frozen=True)
class Survey:
    """What the entries say of the whole release."""

    wall_offset_s: int  # UTC offset of times that carry no zone: the one by which `p_date` is their day
    other_date: int  # entries whose `p_date` is another day than that of their time
    play_unit_ms: int  # of `play_duration`


def survey_entries(table: Table) -> Survey:
    """What the entries say of the clock of times without a zone, of `p_date`, and of the unit of `play_duration`.

    SourceError when `play_duration` is neither ms nor s by the time between start and end.
    """
    forms = time_forms(table, (START, END))
    offsets = {"local": UTC_OFFSET_S, "utc": 0}
    start, end = (time_ms(column, form, table.wall_offset_s(column, UTC_OFFSET_S)) for column, form in forms.items())
    day = pl.col("p_date").str.replace_all("-", "", literal=True).str.to_date("%Y%m%d", strict=False)
    agreeing = {
        name: (_day(time_ms(START, forms[START], table.wall_offset_s(START, offset))) == day).sum()
        for name, offset in offsets.items()
    }
    span, watched = end - start, pl.col("play_duration").cast(pl.Int64, strict=False)
    telling = (span >= 1_000) & (watched > 0)
    fitting = {f"unit_{u}": (telling & (watched * u).is_between(span // 10, span * 2)).sum() for u in (1, 1_000)}
    rows = table.scan(START, END, "p_date", "play_duration")
    figures = rows.select(rows=start.count(), telling=telling.sum(), **agreeing, **fitting)
    found = figures.collect(engine="streaming").row(0, named=True)
    best = "utc" if found["utc"] > found["local"] else "local"
    return Survey(offsets[best], found["rows"] - found[best], _play_unit(table, found))


def _day(time: pl.Expr) -> pl.Expr:
    return pl.from_epoch(time + UTC_OFFSET_S * 1000, time_unit="ms").dt.date()


def _play_unit(table: Table, found: dict[str, int]) -> int:
    """The ms in one unit of `play_duration`: the one by which most entries last from a tenth to twice their span."""
    for unit in (1, 1_000):
        if 2 * found[f"unit_{unit}"] >= found["telling"]:
            return unit
    raise SourceError(
        f"{table.path}: play_duration: of {found['telling']} entries, {found['unit_1']} fit the time between"
        f" {START} and {END} in ms and {found['unit_1000']} in s; it must be ms or s"
    )
