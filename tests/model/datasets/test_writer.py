"""PREPARED folders bucket by bucket: the same bytes for any size of bucket, and what is refused."""

from __future__ import annotations

import io
import os
import shutil
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from parquet_logs import START_MS, contents

from feature_store.schema import default_schema
from model.datasets.buckets import Bucket, Tables
from model.datasets.columns import ColumnWriter, map_columns, permute_columns
from model.datasets.logs import TASK_ACTS, default_view
from model.datasets.prepared import Prepared, PreparedError, PreparedInfo, whole_folder
from model.datasets.writer import write_prepared

HOUR_MS = 3_600_000


def table(rows: int, seed: int = 0, users: int = 40) -> pl.DataFrame:
    """Views of three days, both domains in one table, in no order."""
    rng = np.random.default_rng(seed)
    columns = {name: rng.integers(0, 9, rows) for name in ("author_id", "live_id", "tag", "cluster", "page")}
    columns |= {task: rng.integers(0, 2, rows) for task in TASK_ACTS}
    columns |= {"user_id": rng.integers(0, users, rows), "view_id": rng.permutation(rows)}
    columns |= {
        "event_time": START_MS + rng.integers(0, 72, rows) * HOUR_MS,
        "known_after": 1 + rng.integers(0, 9, rows),
    }
    return pl.DataFrame(columns | {"live": rng.random(rows) < 0.3})


def build(tables: Tables) -> Bucket:
    rows = tables["views"].with_columns(play_time="known_after", behaviours=pl.lit(1))
    day = pl.from_epoch("event_time", time_unit="ms").dt.date()
    truth = pl.when(pl.col("view_id") % 3 > 0).then(pl.col("view_id") / 1e6)
    samples = rows.filter("live").with_columns(request_time="event_time", day=day, truth_ctr=truth)
    events = {"video": rows.filter(~pl.col("live")), "live": rows.filter("live")}
    return Bucket(events, samples, {"rows": len(rows), "buckets": 1})  # type: ignore[arg-type]


def write(out: Path, views: pl.DataFrame, **changes: Any) -> Prepared:
    info = PreparedInfo(
        source="test", test_from=date(2025, 3, 3), tasks=tuple(TASK_ACTS), splits={}, counts={}, training={}
    )
    arguments: dict[str, Any] = {
        "info": info,
        "schema": default_schema(),
        "view": default_view(),
        "tables": {"views": views.lazy()},
        "build": build,
        "users": pl.DataFrame({"user_id": [3, 1_000, -7], "activity_group": [1, 2, 3]}),
        "authors": pl.DataFrame({name: [2, 1] for name in ("author_id", "live_id", "tag", "cluster")}),
    }
    return Prepared.open(write_prepared(out, **(arguments | changes)))


def without_bucket_count(folder: Path) -> dict[str, bytes]:
    lines = contents(folder)
    kept = [line for line in lines["prepared.json"].splitlines() if b'"buckets"' not in line]
    return lines | {"prepared.json": b"\n".join(kept)}


@pytest.mark.parametrize("rows_per_bucket", [1, 30, 200])
def test_the_folder_is_the_same_for_any_size_of_bucket(tmp_path: Path, rows_per_bucket: int) -> None:
    views = table(600)
    whole = write(tmp_path / "whole", views)
    parts = write(tmp_path / "parts", views, rows_per_bucket=rows_per_bucket)
    assert (whole.info.counts["buckets"], whole.info.counts["rows"]) == (1, 600)
    assert parts.info.counts["buckets"] >= 600 // max(rows_per_bucket, 600 // 40)
    assert without_bucket_count(tmp_path / "whole") == without_bucket_count(tmp_path / "parts")


def test_the_order_of_the_logs_does_not_matter(tmp_path: Path) -> None:
    views = table(600).unique(["user_id", "event_time", "author_id", "live_id", "live"])
    write(tmp_path / "a", views.sort("event_time"), rows_per_bucket=90)
    write(tmp_path / "b", views.sort("view_id"), rows_per_bucket=90)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_no_more_than_a_bucket_is_in_memory(tmp_path: Path) -> None:
    sizes = []

    def watched(tables: Tables) -> Bucket:
        sizes.append(len(tables["views"]))
        return build(tables)

    views = table(2_000)
    write(tmp_path / "out", views, build=watched, rows_per_bucket=150)
    assert sum(sizes) == 2_000
    assert max(sizes) <= 150


def test_samples_are_in_order_with_their_truth(tmp_path: Path) -> None:
    views = table(500)
    data = write(tmp_path / "out", views, rows_per_bucket=50)
    keys = ["event_time", "user_id", "author_id", "live_id"]
    expected = views.filter("live").sort(keys, maintain_order=True)
    samples = data.samples
    assert np.array_equal(samples["request_time"], expected["event_time"])
    assert np.array_equal(data.user_ids()[samples["user_row"]], expected["user_id"])
    assert np.array_equal(samples["labels"], expected.select(*TASK_ACTS).to_numpy())
    view_id = expected["view_id"].to_numpy()
    truth = np.where(view_id % 3 > 0, view_id / 1e6, np.nan).astype(np.float32)
    assert samples["truth"].dtype == np.float32
    assert np.array_equal(samples["truth"][:, 0], truth, equal_nan=True)
    assert np.isnan(samples["truth"][:, 1:]).all()


def test_users_of_the_user_table_have_rows_wherever_their_ids_lie(tmp_path: Path) -> None:
    views = table(200, users=10)
    for rows in (20, 1_000):
        data = write(tmp_path / "out", views, rows_per_bucket=rows)
        assert data.user_ids().tolist() == [-7, *range(10), 1_000]
        assert data.users["activity_group"][[0, 4, 11]].tolist() == [3, 1, 2]


def test_what_the_simulator_says_is_kept(tmp_path: Path) -> None:
    write(tmp_path / "out", table(100), simulation={"seed": 3})
    assert (tmp_path / "out" / "simulation.json").read_text() == '{\n "seed": 3\n}\n'
    write(tmp_path / "out", table(100))
    assert not (tmp_path / "out" / "simulation.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"known_after": None}, "known_after: an event whose outcome is not known"),
        ({"event_time": None}, "request_time: a sample without one"),
        ({"tag": 40_000}, r"tag: .* to 40000 do not fit i2"),
        ({"ctr": 2}, r"samples\.ctr: 0 to 2 do not fit"),
    ],
)
def test_what_cannot_be_stored_is_refused_and_nothing_is_left(
    tmp_path: Path, change: dict[str, int | None], message: str
) -> None:
    name, value = next(iter(change.items()))
    last = pl.int_range(pl.len()) == 150

    def broken(tables: Tables) -> Bucket:
        bucket = build(tables)
        wrong = pl.when(last).then(pl.lit(value, pl.Int64)).otherwise(pl.col(name)).alias(name)
        events = (
            {d: f.with_columns(wrong) for d, f in bucket.events.items()} if name == "known_after" else bucket.events
        )
        samples = bucket.samples.with_columns(wrong)
        if name == "event_time":
            samples = samples.with_columns(request_time="event_time")
        return replace(bucket, events=events, samples=samples)

    with pytest.raises(PreparedError, match=message):
        write(tmp_path / "out", table(900), build=broken)
    assert list(tmp_path.iterdir()) == []


def test_columns_are_what_numpy_writes(tmp_path: Path) -> None:
    column, matrix = np.arange(10, dtype="<i2"), np.arange(30, dtype=np.float32).reshape(10, 3)
    with ColumnWriter(tmp_path / "c") as writer:
        for start, stop in ((0, 3), (3, 3), (3, 10)):
            writer.append({"column": column[start:stop], "matrix": matrix[start:stop]})
        assert writer.rows == 10
        with pytest.raises(ValueError, match="does not go on"):
            writer.append({"column": column.astype(np.int64)})
    for name, values in (("column", column), ("matrix", matrix)):
        buffer = io.BytesIO()
        np.save(buffer, values)
        assert (tmp_path / "c" / f"{name}.npy").read_bytes() == buffer.getvalue()
    permute_columns(tmp_path / "c", tmp_path / "p", np.arange(9, -1, -1))
    assert np.array_equal(map_columns(tmp_path / "p")["matrix"], matrix[::-1])


def replaced(folder: Path) -> None:
    with whole_folder(folder, "mark") as scratch:
        (scratch / "mark").write_text("new")


def test_a_folder_that_a_link_names_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    held, link = tmp_path / "held", tmp_path / "elsewhere" / "link"
    replaced(held)
    (held / "old").touch()
    link.parent.mkdir()
    link.symlink_to(held)
    replaced(link)
    assert link.is_symlink()
    assert os.listdir(held) == ["mark"]
    assert os.listdir(tmp_path / "elsewhere") == ["link"]
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "held"]


@pytest.mark.parametrize("call", [1, 2])
def test_what_was_there_stays_until_the_new_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """Each of the two renames fails once; and the removal of the old one, whenever it comes, loses nothing."""
    folder = tmp_path / "data"
    replaced(folder)
    (folder / "mark").write_text("old")
    calls, rename = iter(range(1, 10)), Path.rename

    def failing(path: Path, target: Path) -> Path:
        if next(calls) == call:
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", failing)
        with pytest.raises(KeyboardInterrupt):
            replaced(folder)
    assert os.listdir(tmp_path) == ["data"]
    assert (folder / "mark").read_text() == "old"
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: fails())
        with pytest.raises(KeyboardInterrupt):
            replaced(folder)
    assert (folder / "mark").read_text() == "new"


def fails() -> None:
    raise KeyboardInterrupt
