"""How full the embedding tables of ids become, and how many ids share a row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from feature_store.schema import MISSING
from feature_store.view import ModelView, Part
from model.datasets.columns import map_columns

_CHUNK_ROWS = 4_000_000
_FOLDERS: dict[Part, str] = {
    "video": "video",
    "live": "live",
    "candidate": "samples",
    "user": "users",
    "context": "samples",
}


def occupancy_notes(folder: Path, view: ModelView) -> tuple[str, ...]:
    """A line for each table of ids of a view, from the columns of a PREPARED folder."""
    tables: dict[str, tuple[int, list[np.ndarray]]] = {}
    for part, field in view.all_fields():
        if field.kind == "id" and field.source is not None:
            _, columns = tables.setdefault(view.table_name(part, field), (field.rows - 1, []))
            columns.append(map_columns(folder / _FOLDERS[part])[field.source])
    return tuple(_note(name, rows, distinct_ids(columns)) for name, (rows, columns) in tables.items())


def _note(table: str, rows: int, ids: int) -> str:
    share = sharing_share(ids, rows)
    return f"embedding table {table}: {ids:,} ids in {rows:,} rows; about {share:.1%} of them share a row with another"


def sharing_share(ids: int, rows: int) -> float:
    """The expected share of `ids` that are not alone in their row, each being in a random one of `rows`."""
    return 1 - (1 - 1 / rows) ** max(ids - 1, 0)


def distinct_ids(columns: list[np.ndarray]) -> int:
    """How many ids the columns [N] int64 hold together, missing ones aside; in memory are the distinct ones."""
    found = pl.Series(dtype=pl.Int64)
    for chunk in _chunks(columns):
        found = pl.concat([found, pl.Series(chunk, dtype=pl.Int64).unique()]).unique()
    return len(found) - int((found == MISSING).any())


def _chunks(columns: list[np.ndarray]) -> Iterator[np.ndarray]:
    for column in columns:
        for start in range(0, len(column), _CHUNK_ROWS):
            yield np.asarray(column[start : start + _CHUNK_ROWS])
