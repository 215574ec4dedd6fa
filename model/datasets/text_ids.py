"""Ids that are text, hashed as the service hashes them (feature_store.ids), with an eye on collisions."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
import polars as pl

from feature_store.ids import ids_to_int64
from model.datasets.source import SourceError


def hash_ids(texts: pl.Series) -> pl.Series:
    """Each distinct text is hashed once.  [N] int64"""
    distinct = texts.unique()
    return texts.replace_strict(distinct, pl.Series(_hashes(distinct)), return_dtype=pl.Int64)


def hash_columns(frame: pl.DataFrame, names: Collection[str]) -> pl.DataFrame:
    """The frame with those of its columns that are text and in `names` hashed."""
    texts = [name for name, dtype in frame.schema.items() if name in names and dtype == pl.String]
    return frame.with_columns(hash_ids(frame[name]) for name in texts)


def distinct_hashes(tables: Iterable[pl.LazyFrame], name: str) -> pl.DataFrame:
    """The distinct texts of one id column of several tables, as `name`, and their `hash`.

    SourceError names two texts that have the same hash.
    """
    column = pl.concat([table.select(name) for table in tables])
    texts = column.unique().collect(engine="streaming")[name].sort()
    hashes = _hashes(texts)
    collision = find_collision(texts, hashes)
    if collision:
        raise SourceError(f"{name}: {collision[0]!r} and {collision[1]!r} have the same hash; rename one of them")
    return pl.DataFrame({name: texts, "hash": hashes})


def find_collision(texts: pl.Series, hashes: np.ndarray) -> tuple[str, str] | None:
    """Two of the distinct `texts` [N] whose `hashes` [N] are the same, if there are."""
    order = np.argsort(hashes, kind="stable")
    same = np.flatnonzero(np.diff(hashes[order]) == 0)
    return (texts[int(order[same[0]])], texts[int(order[same[0] + 1])]) if len(same) else None


def _hashes(texts: pl.Series) -> np.ndarray:
    return ids_to_int64(texts.to_list(), "string")
