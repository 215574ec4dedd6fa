"""From the Parquet format to PREPARED: figures, attributes, repeats, corrupt rows, splits."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from parquet_logs import ACTS, DAY_MS, START_MS, Logs

from feature_store.schema import default_schema
from model.datasets.prepared import Prepared
from model.datasets.simulated import default_view, prepare_simulated
from model.datasets.simulator import simulate
from model.datasets.source import SourceError

TEST_FROM = date(2025, 3, 3)


def prepare(logs: Logs, folder: Path, **options: str) -> Prepared:
    return prepare_simulated(logs.write(folder / "logs"), folder / "out", TEST_FROM, **options)  # type: ignore[arg-type]


def test_the_view_is_the_papers() -> None:
    view = default_view()
    assert (view.width("video"), view.width("live"), view.history_length) == (92, 64, 50)
    assert view.tasks == ("ctr", "etr", "lvtr", "ltr", "cmtr", "gtr")
    assert view.missing_from(default_schema()) == []


def test_simulated_logs_become_samples(tmp_path: Path) -> None:
    info = simulate(tmp_path / "logs", users=100, days=4)
    data = prepare_simulated(tmp_path / "logs", tmp_path / "out", info.last_day)
    assert data.info.source == "simulated"
    assert data.info.group_names == ("low", "mid", "high", "full")
    assert data.view.utc_offset_s == 8 * 3600
    assert len(data.events["video"]) == info.views["video"]
    assert len(data.samples["labels"]) == len(data.events["live"]) == info.views["live"]
    days = (data.samples["request_time"] + 8 * 3_600_000) // DAY_MS
    first = int(days.min())
    for split, expected in {"train": [first, first + 1], "valid": [first + 2], "test": [first + 3]}.items():
        assert np.unique(days[data.rows(split)]).tolist() == expected, split


def test_labels_and_attributes_are_those_of_the_rows(tmp_path: Path) -> None:
    logs = Logs.random(1)
    data = prepare(logs, tmp_path)
    live = logs.frames["live_events"].sort("event_time", "user_id", "author_id", "live_id", maintain_order=True)
    acts = ("click", "effective_view", "long_view", "like", "comment", "gift")
    assert np.array_equal(data.samples["labels"], live.select(acts).to_numpy())
    for column in ("author_id", "live_id", "tag", "cluster", "page"):
        assert np.array_equal(data.samples[column], live[column].to_numpy()), column
    users = data.user_ids()
    assert users.tolist() == [1, 2, 3, 4, 5, 6]
    assert data.users["activity_group"][5] == -128  # user 6 is in no attribute file
    assert np.array_equal(users[data.samples["user_row"]], live["user_id"].to_numpy())


def test_events_carry_what_happened(tmp_path: Path) -> None:
    logs = Logs.random(2)
    data = prepare(logs, tmp_path)
    frame = logs.frames["video_events"].sort("view_id")
    columns = data.events["video"].columns
    order = np.argsort(columns["view_id"])
    bits = sum(frame[act].to_numpy() << bit for bit, act in enumerate(ACTS))
    assert np.array_equal(columns["behaviours"][order], bits)
    assert np.array_equal(columns["known_after"][order], np.maximum(frame["play_time"].to_numpy(), 1))
    assert np.array_equal(columns["tag"][order], frame["tag"].to_numpy())


def test_repeats_of_a_view_are_joined(tmp_path: Path) -> None:
    logs = Logs.random(3)
    row = (
        logs.frames["live_events"][:1].with_columns(click=0, like=1, gift=0, play_time=5, view_id=10_000).cast(pl.Int64)
    )
    more = row.with_columns(click=1, like=0, play_time=70).cast(pl.Int64)
    logs.frames["live_events"] = pl.concat([logs.frames["live_events"], row, more])
    data = prepare(logs, tmp_path)
    assert data.info.counts["live_repeats"] == 1
    columns = data.events["live"].columns
    view = np.flatnonzero(columns["view_id"] == 10_000)
    assert columns["play_time"][view].tolist() == [70]
    assert columns["behaviours"][view] & 0b101001 == 0b001001  # click and like, no gift


def test_booleans_are_acts_too(tmp_path: Path) -> None:
    logs = Logs.random(4)
    plain = prepare(logs, tmp_path / "plain")
    logs.frames["live_events"] = logs.frames["live_events"].with_columns(pl.col(*ACTS).cast(pl.Boolean))
    assert np.array_equal(prepare(logs, tmp_path / "bools").samples["labels"], plain.samples["labels"])


CORRUPT = [
    ("live_events", {"user_id": None}, "user_id is missing"),
    ("video_events", {"event_time": -5}, "event_time is -5"),
    ("video_events", {"event_time": (START_MS + 5) * 1000}, "event_time is"),
    ("live_events", {"like": 2}, "like is 2, not an integer from 0 to 1"),
    ("live_events", {"play_time": -1}, "play_time is -1"),
    ("video_events", {"tag": 40_000}, "tag is 40000"),
    ("users", {"activity_group": 200}, "activity_group is 200"),
    ("authors", {"live_id": None}, "live_id is missing"),
]


@pytest.mark.parametrize(("file", "values", "problem"), CORRUPT)
def test_corrupt_rows_stop_or_are_counted(
    tmp_path: Path, file: str, values: dict[str, int | None], problem: str
) -> None:
    logs = Logs.random(5).set(file, 4, **values).set(file, 2, **values)
    rows = len(logs.frames[file])
    with pytest.raises(SourceError, match=rf"{file}\.parquet: row 2: {problem}.*; 2 of {rows} rows"):
        prepare(logs, tmp_path)
    data = prepare(logs, tmp_path, on_error="skip")
    assert data.info.counts[f"corrupt_{file}"] == 2
    assert sum(n for name, n in data.info.counts.items() if name.startswith("corrupt_")) == 2
    if file == "live_events":
        assert len(data.samples["labels"]) == rows - 2


@pytest.mark.parametrize("file", ["video_events", "live_events", "users", "authors"])
def test_a_missing_file_is_named(tmp_path: Path, file: str) -> None:
    logs = Logs.random(6).write(tmp_path / "logs")
    (logs / f"{file}.parquet").unlink()
    with pytest.raises(SourceError, match=rf"{file}\.parquet: not there"):
        prepare_simulated(logs, tmp_path / "out", TEST_FROM)


def test_missing_and_wrong_columns_are_named(tmp_path: Path) -> None:
    logs = Logs.random(7)
    frame = logs.frames["live_events"]
    logs.frames["live_events"] = frame.drop("gift").with_columns(pl.col("tag").cast(pl.Float64))
    with pytest.raises(SourceError, match=r"live_events\.parquet: no integer column tag, gift"):
        prepare(logs, tmp_path)


def test_what_is_no_parquet_is_said(tmp_path: Path) -> None:
    logs = Logs.random(7).write(tmp_path / "logs")
    (logs / "users.parquet").write_text("user_id\n1\n")
    with pytest.raises(SourceError, match=r"users\.parquet: not a Parquet file"):
        prepare_simulated(logs, tmp_path / "out", TEST_FROM)


@pytest.mark.parametrize(
    ("day", "empty"),
    [(date(2025, 3, 4), "test"), (date(2025, 3, 2), "training"), (date(2025, 3, 9), "validation and no test")],
)
def test_a_split_without_samples_is_refused(tmp_path: Path, day: date, empty: str) -> None:
    logs = Logs.random(8).write(tmp_path / "logs")
    with pytest.raises(SourceError, match=rf"no {empty}.* sample; samples are of 2025-03-01 to 2025-03-03"):
        prepare_simulated(logs, tmp_path / "out", day)
    assert not (tmp_path / "out").exists()
