"""The files of KuaiLive-M3, lazily scanned: where they are, how times are written, which rows are corrupt."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from model.datasets.csv_rows import PROBLEM, SHAPE_CHECK, csv_header, scan_csv
from model.datasets.kuailive_view import UTC_OFFSET_S
from model.datasets.source import (
    ROW,
    SMALL_LIMITS,
    Check,
    Limits,
    OnError,
    SourceError,
    integer_check,
    keep_sound,
    narrow,
)

FOLDERS = ("", "live", "short_video")
"""Where a file may be: all in one folder, or by domain as the release has them."""
UNKNOWN = ("", "U", "unknown", "UNKNOWN")
"""What the release writes where a category is not known."""

_SECONDS = (10**9, 2**42 // 1000)  # 2001 to 2109
_MILLISECONDS = (10**12, 2**42)
_ZONE = r"(Z|[+-]\d\d:\d\d)$"

Form = Literal["ms", "s", "text", "datetime"]
"""How a column writes its times."""
Words = dict[str, tuple[str, ...]]
"""The values of categories, by field; a record holds the place of a value."""


@dataclass(frozen=True)
class Table:
    """One file of the release."""

    path: Path
    types: Mapping[str, pl.DataType]  # of its columns; of a text file all strings
    parsed: Path | None = None  # of a text file: where its lines are kept as Parquet

    @property
    def is_text(self) -> bool:
        return self.path.suffix == ".csv"

    def require(self, columns: Sequence[str]) -> None:
        """SourceError names the columns that are not there."""
        missing = [name for name in columns if name not in self.types]
        if missing:
            raise SourceError(f"{self.path}: no column {', '.join(missing)}")

    def wall_offset_s(self, column: str, wall_offset_s: int) -> int:
        """The UTC offset to read a column's times with: none where datetimes carry a zone, and so are UTC inside."""
        kind = self.types[column]
        return 0 if isinstance(kind, pl.Datetime) and kind.time_zone else wall_offset_s

    def scan(self, *columns: str) -> pl.LazyFrame:
        """ROW, `columns`, and of a text file PROBLEM."""
        self.require(columns)
        if self.parsed:
            return pl.scan_parquet(self.parsed).select(ROW, *columns, PROBLEM)
        if self.is_text:
            return scan_csv(self.path, columns)
        shown = [_whole(name) if self.types[name].is_float() else pl.col(name) for name in columns]
        rows = pl.scan_parquet(self.path, row_index_name=ROW)
        return rows.select(ROW, *shown)


def _whole(name: str) -> pl.Expr:
    """A float column as text, so that 3.0 reads as an integer and 3.7 as none."""
    column = pl.col(name)
    whole = column.cast(pl.Int64, strict=False)
    return pl.when(column == whole).then(whole.cast(pl.String)).otherwise(column.cast(pl.String)).alias(name)


def find_table(folder: Path, name: str) -> Table:
    """A file by name, in the folder or in those of its domains.  SourceError when it is not there or not readable."""
    paths = [folder / place / name for place in FOLDERS]
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        places = ", ".join(f"{place}/" for place in FOLDERS if place)
        raise SourceError(f"{folder / name}: not there, nor in {places}; it is one of the files of KuaiLive-M3")
    if path.suffix == ".csv":
        return Table(path, dict.fromkeys(csv_header(path), pl.String()))
    try:
        return Table(path, pl.scan_parquet(path).collect_schema())
    except pl.exceptions.PolarsError as error:
        raise SourceError(f"{path}: not a Parquet file: {error}") from None


def parse(table: Table, columns: Sequence[str], folder: Path) -> Table:
    """The same text file with only `columns`, parsed once into a file of `folder`, so that scans cost little."""
    path = folder / f"{table.path.stem}.parquet"
    table.scan(*columns).sink_parquet(path)
    return Table(table.path, {name: table.types[name] for name in columns}, path)


def time_forms(table: Table, columns: Sequence[str]) -> dict[str, Form]:
    """How columns write their times, by their values.  SourceError when one writes them in two ways."""
    counted = {(column, form): n for column in columns for form, n in _form_counts(table, column).items()}
    if not counted:
        return dict.fromkeys(columns, "datetime")
    figures = table.scan(*columns).select(n.alias(f"{c} {form}") for (c, form), n in counted.items())
    found = dict(zip(counted, figures.collect(engine="streaming").row(0), strict=True))
    return {column: _form(table, column, {f: n for (c, f), n in found.items() if c == column}) for column in columns}


def _form_counts(table: Table, column: str) -> dict[Form, pl.Expr]:
    """How many values are written in each of the forms that a column of this type may have."""
    table.require([column])
    if isinstance(table.types[column], pl.Datetime):
        return {}
    number = pl.col(column).cast(pl.Int64, strict=False)
    counts: dict[Form, pl.Expr] = {
        "ms": number.is_between(*_MILLISECONDS).sum(),
        "s": number.is_between(*_SECONDS).sum(),
    }
    if table.types[column] == pl.String:
        counts["text"] = _text_ms(column, 0).is_not_null().sum()
    return counts


def _form(table: Table, column: str, found: Mapping[Form, int]) -> Form:
    forms = [form for form, count in found.items() if count]
    if len(forms) > 1:
        shown = ", ".join(f"{found[form]} as {form}" for form in forms)
        raise SourceError(f"{table.path}: {column}: times are written in more than one way ({shown}); use one")
    if not found:
        return "datetime"
    return forms[0] if forms else "ms"


def time_ms(column: str, form: Form, wall_offset_s: int) -> pl.Expr:
    """Times as ms since 1970; null where there is none.

    wall_offset_s: UTC offset of texts and datetimes that carry no time zone.
    """
    if form == "text":
        return _text_ms(column, wall_offset_s)
    if form == "datetime":
        return pl.col(column).dt.epoch("ms") - wall_offset_s * 1000
    number = pl.col(column).cast(pl.Int64, strict=False)
    return number if form == "ms" else pl.when(number.is_between(*_SECONDS)).then(number * 1000)


def _text_ms(column: str, wall_offset_s: int) -> pl.Expr:
    """Of "2025-05-04 12:00:00.123", with a T or a zone (Z, +08:00) or not."""
    text = pl.col(column)
    zone = text.str.extract(_ZONE)
    wall = text.str.strip_suffix(zone.fill_null("")).str.replace("T", " ")
    sign = pl.when(zone.str.starts_with("-")).then(-1).otherwise(1)
    hours, minutes = (zone.str.slice(start, 2).cast(pl.Int64, strict=False) for start in (1, 4))
    shift = sign * (hours * 3600 + minutes * 60)
    offset_s = pl.when(zone.is_null()).then(wall_offset_s).when(zone == "Z").then(0).otherwise(shift)
    moment = wall.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="ms", strict=False)
    return moment.dt.epoch("ms") - offset_s * 1000


@dataclass(frozen=True)
class Reader:
    """Reads the files of one release: sound rows only."""

    tables: Mapping[str, Table]  # by file name
    on_error: OnError
    counts: dict[str, int]  # filled in: corrupt rows by file
    wall_offset_s: int = UTC_OFFSET_S  # UTC offset of times that carry no zone

    def read(
        self,
        name: str,
        limits: Limits,
        times: Mapping[str, str] | None = None,
        others: Sequence[str] = (),
        checks: Sequence[Check] = (),
        nullable: Collection[str] = (),
    ) -> pl.LazyFrame:
        """The sound rows of a file, lazily scanned: integers within `limits`, `times` in ms under their new names.

        others: further columns, as they are.  checks: what else makes a row corrupt.  nullable: columns of `limits` and
        `times` that may be missing.
        """
        table, times = self.tables[name], times or {}
        forms = time_forms(table, tuple(times))
        written = [
            time_ms(column, forms[column], table.wall_offset_s(column, self.wall_offset_s)).alias(new)
            for column, new in times.items()
        ]
        rows = table.scan(*limits, *times, *others).with_columns(written)
        single = {column: integer_check(column, bounds) for column, bounds in limits.items()}
        single |= {column: _time_check(column, new) for column, new in times.items()}
        all_checks = [
            *([SHAPE_CHECK] if table.is_text else []),
            *(_unless_missing(column, check) if column in nullable else check for column, check in single.items()),
            *checks,
        ]
        unit = "line" if table.is_text else "row"
        sound, self.counts[f"corrupt_{Path(name).stem}"] = keep_sound(
            rows, all_checks, str(table.path), unit, self.on_error
        )
        return sound.select(*narrow(limits), *times.values(), *others)

    def vocabularies(self, name: str, columns: Mapping[str, str]) -> Words:
        """By new name, the distinct values of categories, in order.  SourceError when there are too many to be one."""
        table = self.tables[name]
        rows = table.scan(*columns.values()).select(pl.col(*columns.values()).cast(pl.String)).unique()
        found = rows.collect(engine="streaming")
        words = {new: tuple(sorted(set(found[column].drop_nulls()) - set(UNKNOWN))) for new, column in columns.items()}
        for new, values in words.items():
            if len(values) > SMALL_LIMITS[1]:
                raise SourceError(f"{table.path}: {columns[new]}: {len(values)} distinct values; a category has fewer")
        return words


def _time_check(column: str, new: str) -> Check:
    sound = pl.col(new).is_between(*_MILLISECONDS).fill_null(False)
    return Check(
        ~sound, pl.format(f"{column} is {{}}, not a time", pl.col(column).cast(pl.String).fill_null("missing"))
    )


def _unless_missing(column: str, check: Check) -> Check:
    return Check(pl.col(column).is_not_null() & check.corrupt, check.problem)


def place(column: str, values: Sequence[str]) -> pl.Expr:
    """The place of a category in its vocabulary; null for a value that is not in it."""
    if not values:
        return pl.lit(None, pl.Int16).alias(column)
    places = {value: i for i, value in enumerate(values)}
    return pl.col(column).cast(pl.String).replace_strict(places, default=None, return_dtype=pl.Int16)
