"""The tables of the project's own format: Parquet or CSV, one file or a folder of parts, lazily scanned and checked."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from model.datasets.csv_rows import SHAPE_CHECK, csv_header, scan_csv
from model.datasets.source import ROW, Check, Limits, OnError, SourceError, integer_check, keep_sound, narrow


@dataclass(frozen=True)
class TableFormat:
    """The columns of one table.  Further columns of a file are ignored."""

    ids: Limits  # integers or text
    integers: Limits
    optional: Limits  # integers that may be left out
    probabilities: tuple[str, ...] = ()  # 0 to 1 or null; each may be left out
    in_order: tuple[tuple[str, str], ...] = ()  # pairs of integers of which the first must not exceed the second


@dataclass(frozen=True)
class Table:
    """The sound rows of a table: integers in narrow dtypes, probabilities as float32, text ids as text."""

    rows: pl.LazyFrame
    text_ids: frozenset[str]
    corrupt: int  # rows left out


@dataclass(frozen=True)
class _Columns:
    """The columns that are read of one file."""

    texts: tuple[str, ...]
    integers: Limits
    floats: tuple[str, ...]
    in_order: tuple[tuple[str, str], ...]
    integer_ids: tuple[str, ...]  # those of the integers that could be text

    def names(self) -> list[str]:
        return [*self.texts, *self.integers, *self.floats]

    def checks(self) -> list[Check]:
        texts = [_text_check(name) for name in self.texts]
        integers = [integer_check(name, limits) for name, limits in self.integers.items()]
        floats = [_probability_check(name) for name in self.floats]
        return [*texts, *integers, *floats, *(_order_check(*pair) for pair in self.in_order)]

    def stored(self) -> list[pl.Expr]:
        floats = [pl.col(name).cast(pl.Float32) for name in self.floats]
        return [*(pl.col(name).cast(pl.String) for name in self.texts), *narrow(self.integers), *floats]


def table_files(folder: Path, name: str) -> list[Path]:
    """The files of a table; none when it is not there.  SourceError when it is there more than once."""
    files = [path for path in (folder / f"{name}.parquet", folder / f"{name}.csv") if path.is_file()]
    parts = sorted(path for path in (folder / name).glob("*") if path.suffix in (".parquet", ".csv"))
    if len(files) + bool(parts) > 1:
        there = [path.name for path in files] + [f"{name}/"] * bool(parts)
        raise SourceError(f"{folder}: one table in {' and in '.join(there)}; keep one of them")
    return files or parts


def scan_table(folder: Path, name: str, table: TableFormat, text_ids: Collection[str], on_error: OnError) -> Table:
    """text_ids: the id columns that are text in a CSV file; a Parquet file says so itself.

    SourceError when the table is not there, a column is missing or of the wrong dtype, parts are of different columns,
    or a row is corrupt.
    """
    files = table_files(folder, name)
    if not files:
        raise SourceError(f"{folder / name}.parquet: not there, nor {name}.csv, nor a folder {name} of such files")
    columns = [_columns(path, table, text_ids) for path in files]
    for path, other in zip(files, columns, strict=True):
        differing = set(other.names()) ^ set(columns[0].names()) or set(other.texts) ^ set(columns[0].texts)
        if differing:
            raise SourceError(f"{path}: not of the same columns as {files[0]}: {', '.join(sorted(differing))}")
    scans = [_scan_file(path, columns[0], on_error) for path in files]
    return Table(
        rows=pl.concat([rows for rows, _ in scans]),
        text_ids=frozenset(columns[0].texts),
        corrupt=sum(corrupt for _, corrupt in scans),
    )


def _columns(path: Path, table: TableFormat, text_ids: Collection[str]) -> _Columns:
    """What to read of a file; SourceError names what is not there."""
    is_csv = path.suffix == ".csv"
    types = dict.fromkeys(csv_header(path), pl.String()) if is_csv else _parquet_types(path)
    texts = tuple(name for name in table.ids if (name in text_ids if is_csv else _is_text(types, name)))
    wanted = {**table.ids, **table.integers, **{name: table.optional[name] for name in table.optional if name in types}}
    integers = {name: limits for name, limits in wanted.items() if name not in texts}
    floats = tuple(name for name in table.probabilities if name in types)
    if table.probabilities and not floats:
        raise SourceError(f"{path}: none of the columns {', '.join(table.probabilities)}")
    if is_csv:
        _require(path, "column", (name for name in (*texts, *integers) if name not in types))
    else:
        _require(path, "integer column", (name for name in integers if not _is_integer(types, name)))
        _require(path, "number column", (name for name in floats if not types[name].is_numeric()))
    in_order = tuple(pair for pair in table.in_order if all(name in integers for name in pair))
    return _Columns(texts, integers, floats, in_order, tuple(name for name in table.ids if name not in texts))


def _scan_file(path: Path, columns: _Columns, on_error: OnError) -> tuple[pl.LazyFrame, int]:
    checks, names = columns.checks(), columns.names()
    if path.suffix == ".csv":
        checks = [SHAPE_CHECK, *(_text_id_check(name) for name in columns.integer_ids), *checks]
        rows, dropped = keep_sound(scan_csv(path, names), checks, str(path), "line", on_error)
    else:
        numbered = pl.scan_parquet(path, row_index_name=ROW).select(ROW, *names)
        rows, dropped = keep_sound(numbered, checks, str(path), "row", on_error)
    return rows.select(columns.stored()), dropped


def _parquet_types(path: Path) -> Mapping[str, pl.DataType]:
    try:
        return pl.read_parquet_schema(path)
    except pl.exceptions.PolarsError as error:
        raise SourceError(f"{path}: not a Parquet file: {error}") from None


def _is_text(types: Mapping[str, pl.DataType], name: str) -> bool:
    return isinstance(types.get(name), pl.String | pl.Categorical | pl.Enum)


def _is_integer(types: Mapping[str, pl.DataType], name: str) -> bool:
    return name in types and (types[name].is_integer() or types[name] == pl.Boolean)


def _require(path: Path, what: str, missing: Iterable[str]) -> None:
    names = ", ".join(missing)
    if names:
        raise SourceError(f"{path}: no {what} {names}")


def _text_check(name: str) -> Check:
    return Check(pl.col(name).cast(pl.String).fill_null("") == "", pl.lit(f"{name} is missing"))


def _text_id_check(name: str) -> Check:
    """A text where an integer should be: CSV does not say which ids are text."""
    text = pl.col(name).is_not_null() & pl.col(name).cast(pl.Int64, strict=False).is_null()
    problem = f"{name} is {{}}, not an integer (text ids: name the column in string_ids of meta.json)"
    return Check(text, pl.format(problem, pl.col(name)))


def _probability_check(name: str) -> Check:
    number = pl.col(name).cast(pl.Float64, strict=False)
    sound = number.is_between(0, 1).fill_null(pl.col(name).is_null())
    return Check(~sound, pl.format(f"{name} is {{}}, not a number from 0 to 1", pl.col(name)))


def _order_check(first: str, second: str) -> Check:
    least, greatest = (pl.col(name).cast(pl.Int64, strict=False) for name in (first, second))
    problem = pl.format(f"{first} is {{}}, later than {second} {{}}", first, second)
    return Check((least > greatest).fill_null(False), problem)
