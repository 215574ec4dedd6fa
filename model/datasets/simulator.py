"""Logs of a platform that is not there, in the project's own format (docs/data.md), with the truth beside them.

Users watch videos one after the other; now and then a slate of live rooms is ranked and shown.  What they do follows
the structures of `world.Planted`, and the true probability of every label is written to live_truth.parquet.
Users are independent of each other, so they are made block after block, in memory that does not grow with them.

Letters: U users of a block, N items (a video or a slate), V views.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_store.schema import DOMAINS
from model.datasets.blocks import BEHAVIOURS, FIRST_DAY, Columns, Platform, Simulation
from model.datasets.logs import META_FILE, TASK_ACTS
from model.datasets.prepared import whole_folder
from model.datasets.source import Progress, quiet
from model.datasets.world import (
    FIRST_AUTHOR_ID,
    Authors,
    Planted,
    cluster_of,
)

_TYPES = {"user_id": pa.int64(), "author_id": pa.int64(), "live_id": pa.int64(), "view_id": pa.int64()}
_TYPES |= {"event_time": pa.int64(), "request_time": pa.int64(), "play_time": pa.int32(), "activity_group": pa.int8()}
_TYPES |= dict.fromkeys(("page", "tag", "cluster"), pa.int16()) | dict.fromkeys(BEHAVIOURS, pa.int8())
_TYPES |= dict.fromkeys(TASK_ACTS, pa.float32())
_SHARED = ("user_id", "author_id", "view_id", "event_time", "play_time", "page", "tag", *BEHAVIOURS)
_COLUMNS: dict[str, tuple[str, ...]] = {
    "video_events": _SHARED,
    "live_events": (*_SHARED, "live_id", "cluster", "request_time"),
    "live_truth": ("user_id", "view_id", *TASK_ACTS),
    "users": ("user_id", "activity_group"),
    "authors": ("author_id", "live_id", "tag", "cluster"),
}


def simulate(
    out: str | Path,
    users: int = 3_000,
    days: int = 8,
    seed: int = 0,
    authors: int | None = None,
    first_day: date = FIRST_DAY,
    planted: Planted | None = None,
    progress: Progress = quiet,
) -> Simulation:
    """Write video_events, live_events, live_truth, users, authors (.parquet) and meta.json into `out`, or nothing.

    authors: one for every ten users, rounded up to a multiple of 192, unless given.  planted: everything, unless
    given.  The same arguments write the same contents.  A user has 52 views a day on average.
    ValueError when there is no user or no day.

    Example: ``simulate("logs", users=3000, days=8, seed=1, planted=Planted().without("memory"))``
    """
    if users < 1 or not 1 <= days <= 1_000 or (authors is not None and authors < 1):
        raise ValueError("at least one user, 1 to 1000 days, and at least one author")
    planted = Planted() if planted is None else planted
    catalogue = Authors.create(max(1, users // 10) if authors is None else authors, days, seed)
    info = Simulation(seed=seed, users=users, authors=catalogue.count, first_day=first_day, days=days)
    with whole_folder(Path(out), marker=META_FILE) as folder:
        platform = Platform(info, catalogue, planted)
        with _Writers(folder) as writers:
            for block in range(platform.blocks):
                for name, columns in platform.block(block).items():
                    writers.write(name, columns)
                progress(f"users {min(users, (block + 1) * platform.block_users):,} of {users:,}")
            for day in range(days):
                writers.write("authors", _rooms(catalogue, day))
        info.views, info.rates = writers.views, writers.rates()
        info.simulation = platform.as_dict()
        (folder / META_FILE).write_text(info.model_dump_json(indent=1) + "\n")
    return info


class _Writers:
    """The files of a log folder, written piece by piece, and what went into them."""

    def __init__(self, folder: Path) -> None:
        self.files = {name: pq.ParquetWriter(folder / f"{name}.parquet", _schema(name)) for name in _COLUMNS}
        self.views: dict[str, int] = dict.fromkeys(DOMAINS, 0)
        self.acts: dict[str, dict[str, int]] = {domain: dict.fromkeys(BEHAVIOURS, 0) for domain in DOMAINS}

    def __enter__(self) -> _Writers:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self.files.values():
            file.close()

    def write(self, name: str, columns: Columns) -> None:
        arrays = [pa.array(columns[c].astype(_TYPES[c].to_pandas_dtype(), copy=False)) for c in _COLUMNS[name]]
        self.files[name].write_table(pa.table(arrays, schema=_schema(name)))
        for domain in DOMAINS:
            if name == f"{domain}_events":
                self.views[domain] += len(columns["user_id"])
                for act in BEHAVIOURS:
                    self.acts[domain][act] += int(np.count_nonzero(columns[act]))

    def rates(self) -> dict[str, dict[str, float]]:
        return {d: {a: n / max(self.views[d], 1) for a, n in acts.items()} for d, acts in self.acts.items()}


def _rooms(authors: Authors, day: int) -> Columns:
    number = np.arange(authors.count)
    live_id = authors.live_id(number, np.full(authors.count, day))
    return {
        "author_id": FIRST_AUTHOR_ID + number,
        "live_id": live_id,
        "tag": authors.room_tag[:, day],
        "cluster": cluster_of(number),
    }


def _schema(name: str) -> pa.Schema:
    return pa.schema([(column, _TYPES[column]) for column in _COLUMNS[name]])
