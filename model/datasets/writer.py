"""PREPARED folders, written bucket after bucket of users, so that memory does not grow with the logs."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from datetime import date, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import polars as pl

from feature_store.schema import DOMAINS, Domain, RecordSchema
from feature_store.view import REQUEST_CONTEXT, ModelView
from model.datasets.buckets import ROWS_PER_BUCKET, Bucket, Build, Part, partition
from model.datasets.columns import ColumnWriter, map_columns, permute_columns
from model.datasets.occupancy import occupancy_notes
from model.datasets.prepared import (
    SIMULATION_FILE,
    SPLITS,
    Columns,
    Events,
    PreparedError,
    PreparedInfo,
    fingerprint,
    history_ends,
    whole_folder,
)
from model.datasets.source import Progress, quiet

_CONTEXT_TYPE = ("i4", (-(2**31) + 1, 2**31 - 1))
_SPLIT = "split"  # the number of a sample's split, kept until the samples are in their order


def write_prepared(
    out: str | Path,
    *,
    info: PreparedInfo,
    schema: RecordSchema,
    view: ModelView,
    tables: Mapping[str, pl.LazyFrame],
    build: Build,
    users: pl.DataFrame,
    authors: pl.DataFrame,
    rows_per_bucket: int = ROWS_PER_BUCKET,
    progress: Progress = quiet,
    simulation: Any = None,
) -> Path:
    """Write a PREPARED folder, whole or not at all; an existing one is replaced.

    tables: logs with a column `user_id`, never null; scanned twice.  build: the rows of all tables of one bucket of
    users -> events and samples (buckets.Bucket says how).  What is in memory is one bucket, and the keys and one column
    of all samples.  users, authors: the record's columns.  `info.splits` is filled in, and `info.counts` completed by
    the counts of the buckets and what was written.  simulation: what a simulator says of itself, kept as a file.
    PreparedError when a split would be empty.
    """
    folder = Path(out)
    with whole_folder(folder, marker="prepared.json") as scratch:
        work = scratch / "work"
        work.mkdir()
        progress("bringing the rows of each user together")
        parts = partition(tables, work, rows_per_bucket)
        with _Writer(scratch, work, schema, view, info.test_from) as writer:
            _write_parts(writer, parts, build, users, progress)
        splits = writer.finish_samples()
        shutil.rmtree(work)
        _write_users(scratch, schema, users, np.concatenate(writer.user_ids))
        _write_table(scratch / "authors", schema, "author", authors.sort("author_id", "live_id"))
        schema.save(scratch / "record_schema.json")
        view.save(scratch / "view.json")
        if simulation is not None:
            (scratch / SIMULATION_FILE).write_text(json.dumps(simulation, indent=1) + "\n")
        sizes = writer.sizes() | {"users": users["user_id"].n_unique(), "lives": len(authors)}
        filled = {
            "splits": splits,
            "counts": info.counts | dict(writer.counts) | sizes,
            "notes": info.notes + occupancy_notes(scratch, view),
        }
        _write_info(scratch, info.model_copy(update=filled))
    return folder


def _write_info(scratch: Path, info: PreparedInfo) -> None:
    """The last file, with the digest of the folder: of all but the counts, which tell of the buckets too."""
    path = scratch / "prepared.json"
    path.write_text(info.model_copy(update={"counts": {}}).model_dump_json())
    path.write_text(info.model_copy(update={"digest": fingerprint(scratch)}).model_dump_json(indent=1) + "\n")


def _write_parts(writer: _Writer, parts: list[Part], build: Build, users: pl.DataFrame, progress: Progress) -> None:
    known = users["user_id"].cast(pl.Int64).unique().sort().to_numpy()
    bounds = [*np.searchsorted(known, [part.first for part in parts]).tolist(), len(known)]
    for number, part in enumerate(parts):
        writer.add(build(part.load()), known[bounds[number] : bounds[number + 1]])
        part.remove()
        progress(f"{number + 1} of {len(parts)} buckets of users written")


def _all_users(known: np.ndarray, *frames: pl.DataFrame) -> np.ndarray:
    columns = [frame["user_id"].cast(pl.Int64) for frame in frames]
    ids: np.ndarray = pl.concat([pl.Series(known, dtype=pl.Int64), *columns]).unique().sort().to_numpy()
    return ids


def _rows_of(user_ids: np.ndarray, frame: pl.DataFrame) -> np.ndarray:
    rows: np.ndarray = np.searchsorted(user_ids, frame["user_id"].cast(pl.Int64).to_numpy())
    return rows


def _narrow(frame: pl.DataFrame, name: str, dtype: str, limits: tuple[int, int], where: str) -> np.ndarray:
    """A column in its stored dtype, null as the dtype's least value; a value beyond the dtype is refused by name."""
    if name not in frame.columns:
        raise PreparedError(f"{where}: no column {name!r}")
    column = frame[name].cast(pl.Int64)
    low, high = limits
    values = column.drop_nulls().to_numpy()
    if len(values) and (values.min() < low or values.max() > high):
        raise PreparedError(f"{where}.{name}: {values.min()} to {values.max()} do not fit {dtype} ({low} to {high})")
    return column.fill_null(low - 1).to_numpy().astype("<" + dtype)


def _record_columns(schema: RecordSchema, record: str, frame: pl.DataFrame) -> Columns:
    return {f.name: _narrow(frame, f.name, f.dtype, f.bounds, record) for f in schema.fields(record)}


def _write_table(folder: Path, schema: RecordSchema, record: str, frame: pl.DataFrame) -> None:
    with ColumnWriter(folder) as writer:
        writer.append(_record_columns(schema, record, frame))


def _write_users(scratch: Path, schema: RecordSchema, users: pl.DataFrame, user_ids: np.ndarray) -> None:
    known = users.unique("user_id", keep="last", maintain_order=True).with_columns(pl.col("user_id").cast(pl.Int64))
    frame = pl.DataFrame({"user_id": user_ids}).join(known, on="user_id", how="left", maintain_order="left")
    _write_table(scratch / "users", schema, "user", frame)


def _split(days: pl.Series, test_from: date) -> np.ndarray:
    """0 for a training day, 1 for the validation day, which is the one before `test_from`, 2 for a test day.  [N]"""
    split = (days >= test_from - timedelta(days=1)).cast(pl.Int8) + (days >= test_from).cast(pl.Int8)
    return split.to_numpy()


def _split_rows(split: np.ndarray, days: pl.Series, test_from: date) -> dict[str, tuple[int, int]]:
    """The rows of each split; PreparedError names those that are empty."""
    sizes = np.bincount(split, minlength=len(SPLITS)).tolist()
    names = ("training", "validation", "test")
    empty = [name for name, size in zip(names, sizes, strict=True) if not size]
    if empty:
        there = days.unique().sort()
        raise PreparedError(
            f"test from {test_from}: no {' and no '.join(empty)} sample; samples are of {there[0]} to {there[-1]},"
            " and validation is the day before the first test day"
        )
    ends = np.cumsum(sizes).tolist()
    return {name: (end - size, end) for name, size, end in zip(SPLITS, sizes, ends, strict=True)}


def _truth(frame: pl.DataFrame, task: str) -> np.ndarray:
    """The true probability of each label, NaN where there is none.  [N] float32"""
    name = f"truth_{task}"
    if name not in frame.columns:
        return np.full(len(frame), np.nan, np.float32)
    return frame[name].cast(pl.Float32).fill_null(np.nan).to_numpy()


class _Writer:
    """Appends buckets of users, in ascending order of user_id.

    Samples are put aside by user, and finish_samples brings them into their order.
    """

    def __init__(self, folder: Path, work: Path, schema: RecordSchema, view: ModelView, test_from: date) -> None:
        self._schema, self._view, self._test_from = schema, view, test_from
        self._pieces, self._samples_folder = work / "samples", folder / "samples"
        self._events = {domain: ColumnWriter(folder / domain) for domain in DOMAINS}
        self._samples = ColumnWriter(self._pieces)
        for writer in self._events.values():
            writer.append({"offsets": np.zeros(1, np.int64)})
        self._total = dict.fromkeys(DOMAINS, 0)  # events so far
        self._days: list[pl.Series] = []  # the distinct days of each bucket's samples
        self._users = 0
        self.user_ids: list[np.ndarray] = [np.empty(0, np.int64)]
        self.counts: Counter[str] = Counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for writer in (self._samples, *self._events.values()):
            writer.close()

    def add(self, bucket: Bucket, known: np.ndarray) -> None:
        """known: users of this bucket that the user table names, each of whom gets a row too."""
        ids = _all_users(known, bucket.samples, *bucket.events.values())
        events = {domain: self._add_events(domain, bucket.events[domain], ids) for domain in DOMAINS}
        self._add_samples(bucket.samples, ids, events)
        for domain in DOMAINS:
            self._total[domain] += len(events[domain])
        self._users += len(ids)
        self.user_ids.append(ids)
        self.counts.update(bucket.counts)

    def sizes(self) -> dict[str, int]:
        return {f"{domain}_events": total for domain, total in self._total.items()} | {"samples": self._samples.rows}

    def _add_events(self, domain: Domain, frame: pl.DataFrame, ids: np.ndarray) -> Events:
        if frame["known_after"].null_count():
            raise PreparedError(f"{domain}.known_after: an event whose outcome is not known cannot be prepared")
        rows = _rows_of(ids, frame)
        known_at = frame["event_time"].to_numpy() + frame["known_after"].cast(pl.Int64).to_numpy()
        order = np.lexsort((frame["view_id"].to_numpy(), known_at, rows))
        columns = _record_columns(self._schema, domain, frame[order])
        offsets = np.zeros(len(ids) + 1, np.int64)
        np.cumsum(np.bincount(rows, minlength=len(ids)), out=offsets[1:])
        self._events[domain].append(columns | {"offsets": self._total[domain] + offsets[1:]})
        return Events(columns, offsets)

    def _add_samples(self, samples: pl.DataFrame, ids: np.ndarray, events: dict[Domain, Events]) -> None:
        for name in ("request_time", "day"):
            if samples[name].null_count():
                raise PreparedError(f"samples.{name}: a sample without one cannot be prepared")
        frame = samples.sort("user_id", "author_id", "live_id", maintain_order=True)
        columns = _record_columns(self._schema, "author", frame)
        columns |= {name: _narrow(frame, name, *_CONTEXT_TYPE, "samples") for name in REQUEST_CONTEXT}
        rows, times = _rows_of(ids, frame), frame["request_time"].to_numpy().astype(np.int64)
        columns |= {"user_row": self._users + rows.astype(np.int64), "request_time": times}
        tasks = self._view.tasks
        columns["labels"] = np.stack([_narrow(frame, task, "i1", (0, 1), "samples") for task in tasks], axis=1)
        if any(f"truth_{task}" in frame.columns for task in tasks):
            columns["truth"] = np.stack([_truth(frame, task) for task in tasks], axis=1)
        for domain in DOMAINS:
            ends = history_ends(events[domain], rows, times - self._view.history_delay_s * 1000)
            columns[f"{domain}_end"] = self._total[domain] + ends
        columns[_SPLIT] = _split(frame["day"], self._test_from)
        self._samples.append(columns)
        if len(frame):
            self._days.append(frame["day"].unique())

    def finish_samples(self) -> dict[str, tuple[int, int]]:
        """Bring the samples into their order, column by column; -> the rows of each split.

        They lie by user, author and live room, so that a stable sort by split and time makes the order whole.
        """
        if not self._days:
            raise PreparedError("no impression of the live domain: there is nothing to learn from")
        pieces = map_columns(self._pieces)
        splits = _split_rows(pieces[_SPLIT], pl.concat(self._days), self._test_from)
        order = np.lexsort((pieces["request_time"], pieces[_SPLIT]))
        (self._pieces / f"{_SPLIT}.npy").unlink()
        permute_columns(self._pieces, self._samples_folder, order)
        return splits
