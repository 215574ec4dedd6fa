"""PREPARED: what `farm prepare` writes and everything offline reads.  A folder of flat, memory-mapped columns.

    prepared.json  record_schema.json  view.json
    video/  live/   one .npy per record column, sorted by (user, known_at, view_id), and offsets.npy [users + 1]
    users/          one .npy per user column, sorted by user_id: row i is user i
    authors/        one .npy per author column, sorted by (author_id, live_id)
    samples/        one .npy per column, sorted by (split, request_time)

A sample holds no history, only where its history ends in each domain: no event is stored twice.
Columns have the dtypes of the record schema; a missing value is the least value of its dtype.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict

from feature_store.schema import DOMAINS, Domain, RecordSchema
from feature_store.view import REQUEST_CONTEXT, ModelView

SPLITS = ("train", "valid", "test")
Columns = dict[str, np.ndarray]


class PreparedError(ValueError):
    """The folder is no PREPARED folder, or the frames given to the writer do not make one."""


class PreparedInfo(BaseModel):
    """What was prepared, from what, and how it is best trained."""

    model_config = ConfigDict(extra="forbid")

    source: str
    test_from: date  # first test day; the validation day is the one before it
    tasks: tuple[str, ...]
    splits: dict[str, tuple[int, int]]  # rows of `samples`, half open
    counts: dict[str, int]  # events, users, authors, rows dropped and why
    training: dict[str, Any]  # recommended settings: fields of model.config.TrainConfig and FarmConfig
    group_names: tuple[str, ...] = ()  # activity groups by value of the user's `activity_group`
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Events:
    """The events of one domain, flat.  Those of user row u are offsets[u] .. offsets[u + 1], by (known_at, view_id)."""

    columns: Columns  # [E] each
    offsets: np.ndarray  # [users + 1] int64

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def known_at(self) -> np.ndarray:
        """When the outcome of each event was known, ms since 1970.  [E] int64"""
        return np.asarray(self.columns["event_time"]) + self.columns["known_after"].astype(np.int64)

    def user_rows(self) -> np.ndarray:
        """The user row of each event.  [E] int64"""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))


@dataclass(frozen=True)
class Prepared:
    """A PREPARED folder, opened.  Columns are memory-mapped."""

    path: Path
    info: PreparedInfo
    schema: RecordSchema
    view: ModelView
    events: dict[Domain, Events]
    users: Columns
    authors: Columns
    samples: (
        Columns  # user_row, request_time, author columns, context columns, labels [N, tasks] int8, video_end, live_end
    )

    @classmethod
    def open(cls, path: str | Path) -> Prepared:
        """Open a folder; PreparedError says what is not there."""
        folder = Path(path)
        if not (folder / "prepared.json").is_file():
            raise PreparedError(f"{folder}: no prepared.json; make the folder with `farm prepare`")
        events: dict[Domain, Events] = {}
        for domain in DOMAINS:
            columns = _load_columns(folder / domain)
            offsets = columns.pop("offsets")
            events[domain] = Events(columns, offsets)
        return cls(
            path=folder,
            info=PreparedInfo.model_validate_json((folder / "prepared.json").read_text()),
            schema=RecordSchema.load(folder / "record_schema.json"),
            view=ModelView.load(folder / "view.json"),
            events=events,
            users=_load_columns(folder / "users"),
            authors=_load_columns(folder / "authors"),
            samples=_load_columns(folder / "samples"),
        )

    def rows(self, split: str) -> np.ndarray:
        """The sample rows of "train", "valid" or "test", in order of request time."""
        start, stop = self.info.splits[split]
        return np.arange(start, stop)

    def user_ids(self) -> np.ndarray:
        return self.users["user_id"]


def history_ends(events: Events, user_rows: np.ndarray, times: np.ndarray) -> np.ndarray:
    """End offset of the history that was known at `times` [ms]: the first event with known_at > time.  [N] int64

    One binary search over (user, known_at) folded into a single integer.
    """
    if len(events) == 0 or len(times) == 0:
        return np.asarray(events.offsets[user_rows], dtype=np.int64)
    known_at = events.known_at()
    start = min(int(known_at.min()), int(times.min()))
    span = max(int(known_at.max()), int(times.max())) - start + 2
    if span * (len(events.offsets) + 1) >= 2**63:
        raise PreparedError("users x time span does not fit 64 bits; split the users over several folders")
    keys = events.user_rows() * span + (known_at - start)
    ends: np.ndarray = np.searchsorted(keys, user_rows.astype(np.int64) * span + (times - start), side="right")
    return ends


def write_prepared(
    out: str | Path,
    *,
    info: PreparedInfo,
    schema: RecordSchema,
    view: ModelView,
    events: dict[Domain, pl.DataFrame],
    users: pl.DataFrame,
    authors: pl.DataFrame,
    samples: pl.DataFrame,
) -> Path:
    """Write a PREPARED folder, whole or not at all; an existing one is replaced.

    events: `user_id` and the record's columns.  users, authors: the record's columns.  samples: `user_id`,
    `request_time` [ms], `day` (the local date that decides its split), the author record's columns (as they were at the
    request), context columns, and a column per task (0, 1, null = not known).  `info.splits` is filled in.
    """
    folder = Path(out)
    with whole_folder(folder, marker="prepared.json") as scratch:
        user_ids = _all_users(users, samples, *events.values())
        _write_users(scratch, schema, users, user_ids)
        _write_columns(scratch / "authors", schema, "author", authors.sort("author_id", "live_id"))
        written = {d: _write_events(scratch / d, schema, d, events[d], user_ids) for d in DOMAINS}
        samples = samples.with_columns(split=_split(info.test_from))
        _write_samples(scratch / "samples", schema, view, samples, user_ids, written)
        info = info.model_copy(update={"splits": _split_rows(samples["split"])})
        schema.save(scratch / "record_schema.json")
        view.save(scratch / "view.json")
        (scratch / "prepared.json").write_text(info.model_dump_json(indent=1) + "\n")
    return folder


def _split(test_from: date) -> pl.Expr:
    """0 for a training day, 1 for the validation day, which is the one before `test_from`, 2 for a test day."""
    day = pl.col("day")
    return (day >= test_from - timedelta(days=1)).cast(pl.Int8) + (day >= test_from).cast(pl.Int8)


def _split_rows(split: pl.Series) -> dict[str, tuple[int, int]]:
    sizes = [int((split == number).sum()) for number in range(len(SPLITS))]
    ends = np.cumsum(sizes).tolist()
    return {name: (end - size, end) for name, size, end in zip(SPLITS, sizes, ends, strict=True)}


@contextmanager
def whole_folder(folder: Path, marker: str) -> Iterator[Path]:
    """A folder to write into, which takes the place of `folder` when all went well, and else is removed.

    marker: the file that a folder must hold to be replaced.  PreparedError for a file, and for another folder that is
    not empty.
    """
    if folder.is_file() or (folder.is_dir() and not (folder / marker).is_file() and any(folder.iterdir())):
        raise PreparedError(f"{folder}: holds something else (no {marker}); give another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield scratch
        os.chmod(scratch, 0o755)
        if folder.exists():
            shutil.rmtree(folder)
        scratch.rename(folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def _all_users(*frames: pl.DataFrame) -> np.ndarray:
    columns = [frame["user_id"].unique() for frame in frames]
    return pl.concat([c.cast(pl.Int64) for c in columns]).unique().sort().to_numpy()


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


def _write_columns(folder: Path, schema: RecordSchema, record: str, frame: pl.DataFrame) -> None:
    folder.mkdir()
    for field in schema.fields(record):
        np.save(folder / f"{field.name}.npy", _narrow(frame, field.name, field.dtype, field.bounds, record))


def _write_users(scratch: Path, schema: RecordSchema, users: pl.DataFrame, user_ids: np.ndarray) -> None:
    known = users.unique("user_id", keep="last", maintain_order=True)
    frame = pl.DataFrame({"user_id": user_ids}).join(known, on="user_id", how="left", maintain_order="left")
    _write_columns(scratch / "users", schema, "user", frame)


def _write_events(
    folder: Path, schema: RecordSchema, domain: Domain, frame: pl.DataFrame, user_ids: np.ndarray
) -> Events:
    if frame["known_after"].null_count():
        raise PreparedError(f"{domain}.known_after: an event whose outcome is not known cannot be prepared")
    rows = _rows_of(user_ids, frame)
    known_at = frame["event_time"].to_numpy() + frame["known_after"].cast(pl.Int64).to_numpy()
    order = np.lexsort((frame["view_id"].to_numpy(), known_at, rows))
    _write_columns(folder, schema, domain, frame[order])
    offsets = np.zeros(len(user_ids) + 1, np.int64)
    np.cumsum(np.bincount(rows, minlength=len(user_ids)), out=offsets[1:])
    np.save(folder / "offsets.npy", offsets)
    columns = _load_columns(folder)
    columns.pop("offsets")
    return Events(columns, offsets)


def _write_samples(
    folder: Path,
    schema: RecordSchema,
    view: ModelView,
    samples: pl.DataFrame,
    user_ids: np.ndarray,
    events: dict[Domain, Events],
) -> None:
    frame = samples.sort("split", "request_time", "user_id", "author_id", "live_id", maintain_order=True)
    _write_columns(folder, schema, "author", frame)
    for name in REQUEST_CONTEXT:
        np.save(folder / f"{name}.npy", _narrow(frame, name, "i4", (-(2**31) + 1, 2**31 - 1), "samples"))
    rows, times = _rows_of(user_ids, frame), frame["request_time"].to_numpy().astype(np.int64)
    np.save(folder / "user_row.npy", rows.astype(np.int64))
    np.save(folder / "request_time.npy", times)
    labels = [_narrow(frame, task, "i1", (0, 1), "samples") for task in view.tasks]
    np.save(folder / "labels.npy", np.stack(labels, axis=1))
    for domain in DOMAINS:
        ends = history_ends(events[domain], rows, times - view.history_delay_s * 1000)
        np.save(folder / f"{domain}_end.npy", ends)


def _load_columns(folder: Path) -> Columns:
    if not folder.is_dir():
        raise PreparedError(f"{folder}: not there; the PREPARED folder is not whole, prepare it again")
    return {file.stem: np.load(file, mmap_mode="r") for file in sorted(folder.glob("*.npy"))}
