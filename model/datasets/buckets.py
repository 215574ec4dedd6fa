"""Users in buckets, so that what is in memory at a time is the rows of one bucket, however many the logs have.

A source gives lazily scanned tables that carry `user_id`, and a function that turns all rows of one bucket of users
into events and samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from feature_store.schema import Domain

ROWS_PER_BUCKET = 1_000_000
_CHUNK_ROWS = 1_000_000  # rows of a table that are in memory while it is partitioned
_MOST_BUCKETS = 500  # each has a file open while a table is partitioned
_LEAST_USER = -(2**63)

Tables = dict[str, pl.DataFrame]
"""All rows of one bucket of users, by table name, in the order of the table.  A table without such rows is empty."""


@dataclass(frozen=True)
class Bucket:
    """What the rows of one bucket of users become.

    events: by domain, `user_id` and the record's columns; `known_after` is never null.
    samples: `user_id`, `request_time` [ms], `day` (the local date that decides its split), the author record's columns
    (as they were at the request), context columns, a column per task (0, 1, null = not known), and optionally
    `truth_<task>` (float: the true probability of the label; null where not known).
    counts: figures to report, summed over the buckets.
    """

    events: dict[Domain, pl.DataFrame]
    samples: pl.DataFrame
    counts: dict[str, int]


Build = Callable[[Tables], Bucket]
"""Turns the rows of one bucket of users into events and samples.  Pure: called once per bucket, in any order."""


@dataclass(frozen=True)
class Part:
    """The rows of the users from `first` on, as far as the next part's, on disk."""

    first: int  # least user_id; of the first part the least there is
    files: dict[str, Path]
    schemas: dict[str, pl.Schema]

    def load(self) -> Tables:
        return {
            name: pl.read_ipc(path) if path.exists() else self.schemas[name].to_frame()
            for name, path in self.files.items()
        }

    def remove(self) -> None:
        for path in self.files.values():
            path.unlink(missing_ok=True)


def partition(tables: Mapping[str, pl.LazyFrame], scratch: Path, rows_per_bucket: int = ROWS_PER_BUCKET) -> list[Part]:
    """Write each table's rows into one file per bucket, a bucket being a contiguous range of user_id.

    A bucket has at most `rows_per_bucket` rows of all tables together, unless one user alone has more, or there would
    be too many buckets.
    """
    users = _rows_by_user(tables)
    rows_per_bucket = max(rows_per_bucket, 2 * int(users["rows"].sum()) // _MOST_BUCKETS)
    firsts = _first_users(users["user_id"].to_numpy(), users["rows"].to_numpy(), rows_per_bucket)
    schemas = {name: table.collect_schema() for name, table in tables.items()}
    parts = [
        Part(first, {name: scratch / f"{name}-{i}.arrow" for name in tables}, schemas)
        for i, first in enumerate(firsts.tolist())
    ]
    for name, table in tables.items():
        _distribute(table, firsts, [part.files[name] for part in parts])
    return parts


def _rows_by_user(tables: Mapping[str, pl.LazyFrame]) -> pl.DataFrame:
    """`user_id` ascending and `rows`, over all tables."""
    ids = pl.concat([table.select(pl.col("user_id").cast(pl.Int64)) for table in tables.values()])
    return ids.group_by("user_id").agg(rows=pl.len()).collect(engine="streaming").sort("user_id")


def _first_users(user_ids: np.ndarray, rows: np.ndarray, rows_per_bucket: int) -> np.ndarray:
    """The least user_id of each bucket: users in order, as many as fit.  [buckets] int64"""
    total = np.concatenate([[0], np.cumsum(rows, dtype=np.int64)])
    starts = [0]
    while starts[-1] < len(user_ids):
        fitting = int(np.searchsorted(total, total[starts[-1]] + rows_per_bucket, side="right")) - 1
        starts.append(max(fitting, starts[-1] + 1))
    firsts = user_ids[np.array(starts[:-1], np.int64)].astype(np.int64)
    firsts[:1] = _LEAST_USER
    return firsts


def _distribute(table: pl.LazyFrame, firsts: np.ndarray, files: list[Path]) -> None:
    with ExitStack() as stack:
        writers: dict[int, pa.ipc.RecordBatchFileWriter] = {}
        for chunk in table.collect_batches(chunk_size=_CHUNK_ROWS, maintain_order=True, engine="streaming"):
            for bucket, rows in _by_bucket(chunk, firsts):
                if bucket not in writers:
                    writers[bucket] = stack.enter_context(pa.ipc.new_file(files[bucket], rows.schema))
                writers[bucket].write_table(rows)


def _by_bucket(chunk: pl.DataFrame, firsts: np.ndarray) -> list[tuple[int, pa.Table]]:
    """The rows of a chunk by bucket, each in the chunk's order."""
    bucket = np.searchsorted(firsts, chunk["user_id"].cast(pl.Int64).to_numpy(), side="right") - 1
    rows = chunk[np.argsort(bucket, kind="stable")].to_arrow()
    there, sizes = np.unique(bucket, return_counts=True)
    starts = np.cumsum(sizes) - sizes
    return [(int(b), rows.slice(int(start), int(size))) for b, start, size in zip(there, starts, sizes, strict=True)]
