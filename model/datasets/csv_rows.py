"""Text files row by row, with every row accounted for: which are corrupt, where, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from model.datasets.source import ROW, Check, Limits, OnError, SourceError, integer_checks, keep_sound

PROBLEM = "_problem"
"""What is wrong with the shape of a line; null where nothing is."""
SHAPE_CHECK = Check(pl.col(PROBLEM).is_not_null(), pl.col(PROBLEM))


def read_csv(
    path: Path, limits: Limits, checks: Mapping[str, Check | None], on_error: OnError
) -> tuple[pl.LazyFrame, int]:
    """The sound rows of a file, as strings, in the order of the file, and how many were dropped.  Lazily scanned.

    limits, checks: by column, the columns to read: integers within limits, and others with what makes a value corrupt
    (None: nothing does).  A row with more or fewer columns than the header is corrupt too.
    """
    columns = [*limits, *checks]
    missing = [name for name in columns if name not in csv_header(path)]
    if missing:
        raise SourceError(f"{path}: no column {', '.join(missing)}")
    others = [check for check in checks.values() if check is not None]
    rows, dropped = keep_sound(
        scan_csv(path, columns), [SHAPE_CHECK, *integer_checks(limits), *others], str(path), "line", on_error
    )
    return rows.select(columns), dropped


def csv_header(path: Path) -> list[str]:
    """The names of the columns."""
    first = _scan_lines(path).head(1).collect()["line"]
    names = ((first[0] or "").strip("\r\ufeff") if len(first) else "").split(",")
    return [name.strip('"') for name in names]


def scan_csv(path: Path, columns: Sequence[str]) -> pl.LazyFrame:
    """ROW (the line), `columns` as strings, null where empty, and PROBLEM.  Lazily scanned, in the order of the file.

    Lines are split by expressions, because a scanner of CSV goes astray, or stops, after a line of a wrong shape.
    """
    header = csv_header(path)
    line = pl.col("line").fill_null("").str.strip_suffix("\r")
    lines = _scan_lines(path).filter(pl.col(ROW) > 1).with_columns(line)
    quoted = lines.select(pl.col("line").str.contains('"', literal=True).any()).collect(engine="streaming").item()
    values = [_value(header.index(name), quoted).alias(name) for name in columns]
    split = lines.with_columns(_fields=_quoted_fields() if quoted else pl.col("line").str.split(","))
    return split.select(ROW, *values, _shape_problem(len(header), quoted))


def _scan_lines(path: Path) -> pl.LazyFrame:
    return pl.scan_csv(
        path,
        separator="\x01",  # in no line, so that a line is one value
        quote_char=None,
        has_header=False,
        schema={"line": pl.String},
        encoding="utf8-lossy",
        truncate_ragged_lines=True,
        row_index_name=ROW,
        row_index_offset=1,
    )


def _quoted_fields() -> pl.Expr:
    """The fields of a line, each with the comma before it; a comma within quotes separates nothing."""
    return (pl.lit(",") + pl.col("line")).str.extract_all(',("[^"]*"|[^",]*)')


def _value(place: int, quoted: bool) -> pl.Expr:
    field = pl.col("_fields").list.get(place, null_on_oob=True)
    if quoted:
        field = field.str.strip_prefix(",").str.strip_prefix('"').str.strip_suffix('"')
    return pl.when(field != "").then(field)


def _shape_problem(columns: int, quoted: bool) -> pl.Expr:
    """What is wrong with a line before its values are looked at."""
    found = pl.col("_fields").list.len()
    problem: pl.Expr = pl.when(found != columns).then(pl.format(f"{{}} columns, not {columns}", found))
    if quoted:
        sound = pl.col("line").str.contains(r'^("[^"]*"|[^",]*)(,("[^"]*"|[^",]*))*$')
        problem = pl.when(~sound).then(pl.lit("a quote that does not enclose a value")).otherwise(problem)
    return problem.alias(PROBLEM)
