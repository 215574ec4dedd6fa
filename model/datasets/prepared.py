"""PREPARED: what `farm prepare` writes and everything offline reads.  A folder of flat, memory-mapped columns.

    prepared.json  record_schema.json  view.json
    video/  live/   one .npy per record column, sorted by (user, known_at, view_id), and offsets.npy [users + 1]
    users/          one .npy per user column, sorted by user_id: row i is user i
    authors/        one .npy per author column, sorted by (author_id, live_id)
    samples/        one .npy per column, sorted by (split, request_time)
    simulation.json  of simulated logs: what the simulator says of itself

A sample holds no history, only where its history ends in each domain: no event is stored twice.
Columns have the dtypes of the record schema; a missing value is the least value of its dtype.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from feature_store.schema import DOMAINS, Domain, RecordSchema
from feature_store.view import ModelView
from model.datasets.columns import map_columns

Columns = dict[str, np.ndarray]
SPLITS = ("train", "valid", "test")
SIMULATION_FILE = "simulation.json"


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
    digest: str = ""  # of every file of the folder and what is said here but the counts; "" of older folders


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
    samples: Columns
    """user_row, request_time, author columns, context columns, labels [N, tasks] int8, video_end, live_end, and of
    simulated logs truth [N, tasks] float32: the true probability of each label, NaN where not known."""

    @classmethod
    def open(cls, path: str | Path) -> Prepared:
        """Open a folder; PreparedError says what is not there."""
        folder = Path(path)
        if not (folder / "prepared.json").is_file():
            raise PreparedError(f"{folder}: no prepared.json; make the folder with `farm prepare`")
        events: dict[Domain, Events] = {}
        for domain in DOMAINS:
            columns = _open_columns(folder / domain)
            offsets = columns.pop("offsets")
            events[domain] = Events(columns, offsets)
        return cls(
            path=folder,
            info=PreparedInfo.model_validate_json((folder / "prepared.json").read_text()),
            schema=RecordSchema.load(folder / "record_schema.json"),
            view=ModelView.load(folder / "view.json"),
            events=events,
            users=_open_columns(folder / "users"),
            authors=_open_columns(folder / "authors"),
            samples=_open_columns(folder / "samples"),
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


@contextmanager
def whole_folder(folder: Path, marker: str) -> Iterator[Path]:
    """A folder to write into, which takes the place of `folder` when all went well, and else is removed.

    marker: the file that a folder must hold to be replaced.  PreparedError for a file, and for another folder that is
    not empty.
    """
    if folder.is_file() or (folder.is_dir() and not (folder / marker).is_file() and any(folder.iterdir())):
        raise PreparedError(f"{folder}: holds something else (no {marker}); give another folder")
    place = folder.resolve()  # a link keeps pointing at it
    place.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    try:
        yield scratch
        os.chmod(scratch, 0o755)
        _put_in_place(scratch, place)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def _put_in_place(scratch: Path, place: Path) -> None:
    """Rename; what was there before is moved aside, and removed once the new one stands."""
    if not place.exists():
        scratch.rename(place)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{place.name}.old.", dir=place.parent))
    try:
        place.rename(aside / place.name)
        scratch.rename(place)
    except BaseException:
        if (aside / place.name).exists() and not place.exists():
            (aside / place.name).rename(place)
        shutil.rmtree(aside, ignore_errors=True)
        raise
    shutil.rmtree(aside, ignore_errors=True)  # what cannot be removed is no reason to say that the new one is not there


def fingerprint(folder: Path) -> str:
    """A digest of every file of a PREPARED folder and its name."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            digest.update(f"{path.relative_to(folder)} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _open_columns(folder: Path) -> Columns:
    if not folder.is_dir():
        raise PreparedError(f"{folder}: not there; the PREPARED folder is not whole, prepare it again")
    return map_columns(folder)
