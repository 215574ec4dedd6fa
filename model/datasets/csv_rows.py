"""Text files row by row, with every row accounted for: which are corrupt, where, and why."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from model.datasets.source import (
    PROBLEM,
    ROW,
    Limits,
    OnError,
    SourceError,
    first_problem,
    integer_problems,
    keep_sound,
)


def read_csv(
    path: Path, limits: Limits, problems: Mapping[str, pl.Expr], on_error: OnError
) -> tuple[pl.DataFrame, int]:
    """The sound rows of a file, as strings, and how many were dropped.

    limits, problems: by column, the columns to read: integers within limits, and others with what is wrong with a
    value (null when nothing is).  A row with more or fewer columns than the header is corrupt too.
    """
    lines = pl.read_csv(
        path,
        separator="\x01",  # in no line, so that a line is one value
        quote_char=None,
        has_header=False,
        schema={"line": pl.String},
        encoding="utf8-lossy",
        truncate_ragged_lines=True,
    ).with_row_index(ROW, offset=1)
    header = (lines["line"][0] or "").strip("\r\ufeff") if len(lines) else ""
    columns = header.split(",")
    missing = [name for name in (*limits, *problems) if name not in columns]
    if missing:
        raise SourceError(f"{path}: no column {', '.join(missing)}")
    body = lines[1:].with_columns(_shape_problem(len(columns)))
    whole = body.filter(pl.col(PROBLEM).is_null())
    text = "\n".join((header, whole["line"].str.join("\n").item())).encode()
    values = pl.read_csv(text, infer_schema=False).select(*limits, *problems)
    rows = pl.concat([whole.select(ROW, PROBLEM), values], how="horizontal")
    rows = rows.with_columns(first_problem([pl.col(PROBLEM), *integer_problems(limits), *problems.values()]))
    broken = body.filter(pl.col(PROBLEM).is_not_null()).select(ROW, PROBLEM)
    return keep_sound(pl.concat([rows, broken], how="diagonal"), str(path), "line", on_error)


def _shape_problem(columns: int) -> pl.Expr:
    """What is wrong with a line before its values are looked at; a comma within quotes separates nothing."""
    line = pl.col("line").fill_null("").str.strip_suffix("\r")
    found = line.str.replace_all('"[^"]*"', "").str.count_matches(",", literal=True) + 1
    misplaced = ~line.str.contains(r'^("[^"]*"|[^",]*)(,("[^"]*"|[^",]*))*$')
    return (
        pl.when(misplaced)
        .then(pl.lit("a quote that does not enclose a value"))
        .when(found != columns)
        .then(pl.format(f"{{}} columns, not {columns}", found))
        .alias(PROBLEM)
    )
