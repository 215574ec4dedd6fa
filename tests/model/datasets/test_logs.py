"""From the project's own format to PREPARED: figures, attributes, repeats, forms, text ids, corrupt rows, splits."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from parquet_logs import ACTS, DAY_MS, START_MS, Logs, contents

from feature_store.ids import to_id64
from feature_store.merge import merge_histories
from feature_store.schema import DOMAINS, MISSING, Domain, default_schema
from model.datasets.logs import default_view, prepare_logs
from model.datasets.occupancy import distinct_ids, sharing_share
from model.datasets.prepared import Prepared, PreparedError
from model.datasets.simulator import simulate
from model.datasets.source import SourceError
from model.datasets.text_ids import find_collision, hash_ids

TEST_FROM = date(2025, 3, 3)


def prepare(logs: Logs, folder: Path, **options: str) -> Prepared:
    return prepare_logs(logs.write(folder / "logs"), folder / "out", TEST_FROM, **options)  # type: ignore[arg-type]


def test_the_view_is_the_papers() -> None:
    view = default_view()
    assert (view.width("video"), view.width("live"), view.history_length) == (92, 64, 50)
    assert view.tasks == ("ctr", "etr", "lvtr", "ltr", "cmtr", "gtr")
    assert view.missing_from(default_schema()) == []


def test_a_store_that_keeps_no_more_than_a_delayed_view_reads_lacks_something() -> None:
    """Views of the delay would displace what is read."""
    schema = default_schema()
    delayed = default_view().model_copy(update={"history_delay_s": 60, "history_length": schema.history_length})
    (lack,) = delayed.missing_from(schema)
    assert lack.startswith(f"history_length {schema.history_length} before the last 60 s (the store keeps")
    assert delayed.missing_from(schema.model_copy(update={"history_length": schema.history_length + 50})) == []


def test_simulated_logs_become_samples(tmp_path: Path) -> None:
    info = simulate(tmp_path / "logs", users=100, days=4)
    data = prepare_logs(tmp_path / "logs", tmp_path / "out", info.last_day)
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


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("turned", [False, True])
def test_repeats_of_other_times_are_one_view_as_a_store_has_it(tmp_path: Path, domain: Domain, turned: bool) -> None:
    """From the earliest start to the latest end, in any order: an outcome is never known before it was reported."""
    logs, table = Logs.random(3), f"{domain}_events"
    first = logs.frames[table][:1].with_columns(pl.all().cast(pl.Int64))
    first = first.with_columns(view_id=10_000, play_time=1_000, like=0, gift=0, page=1)
    late = first.with_columns(pl.col("event_time") + 300_000, play_time=30_000, gift=1, page=2)
    far = first.with_columns(view_id=10_001, event_time=pl.col("event_time") - 2**32)
    if "request_time" in first.columns:
        late = late.with_columns(request_time=pl.col("event_time") - 7)
        far = far.with_columns(request_time="event_time")
    repeats = [first, late, far, first.with_columns(view_id=10_001)]
    for row in repeats[::-1] if turned else repeats:
        logs.frames[table] = pl.concat([logs.frames[table], row], how="vertical_relaxed")
    data = prepare(logs, tmp_path)
    columns = data.events[domain].columns
    view = np.flatnonzero(columns["view_id"] == 10_000)
    assert len(view) == 1
    start = first["event_time"].item()
    assert columns["event_time"][view[0]] == start
    assert columns["known_after"][view[0]] == 330_000
    assert columns["play_time"][view[0]] == 30_000
    alone = [prepared_alone(one, domain, tmp_path / name) for name, one in {"a": first, "b": late}.items()]
    records = np.concatenate(alone)
    merged, _ = merge_histories(data.schema, domain, records, np.zeros(2, np.int64), 1)
    assert {name: columns[name][view].tolist() for name in merged.dtype.names} == {
        name: merged[name].tolist() for name in merged.dtype.names
    }
    assert columns["known_after"][columns["view_id"] == 10_001].tolist() == [2**31 - 1]  # as late as can be said


def prepared_alone(row: pl.DataFrame, domain: Domain, folder: Path) -> np.ndarray:
    """The record that one row becomes among rows of other views.  [1]"""
    logs = Logs.random(3)
    frame = logs.frames[f"{domain}_events"]
    logs.frames[f"{domain}_events"] = pl.concat([frame, row], how="vertical_relaxed")
    data = prepare(logs, folder)
    columns = data.events[domain].columns
    view = np.flatnonzero(columns["view_id"] == row["view_id"].item())
    records = np.empty(len(view), data.schema.dtype(domain))
    for name in records.dtype.names:
        records[name] = columns[name][view]
    return records


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
        prepare_logs(logs, tmp_path / "out", TEST_FROM)


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
        prepare_logs(logs, tmp_path / "out", TEST_FROM)


@pytest.mark.parametrize(
    ("day", "empty"),
    [(date(2025, 3, 4), "test"), (date(2025, 3, 2), "training"), (date(2025, 3, 9), "validation and no test")],
)
def test_a_split_without_samples_is_refused(tmp_path: Path, day: date, empty: str) -> None:
    logs = Logs.random(8).write(tmp_path / "logs")
    with pytest.raises(PreparedError, match=rf"no {empty}.* sample; samples are of 2025-03-01 to 2025-03-03"):
        prepare_logs(logs, tmp_path / "out", day)
    assert not (tmp_path / "out").exists()


def test_csv_and_parts_give_the_same_folder(tmp_path: Path) -> None:
    logs = Logs.random(9, video=300)
    plain = contents(prepare(logs, tmp_path / "plain").path)
    forms = {
        "csv": logs.write_csv(tmp_path / "csv"),
        "parts": logs.write_parts(tmp_path / "parts", 3),
        "mixed": logs.write_csv(tmp_path / "mixed"),
    }
    (forms["mixed"] / "video_events").mkdir()
    (forms["mixed"] / "video_events.csv").rename(forms["mixed"] / "video_events" / "all.csv")
    for name, folder in forms.items():
        prepare_logs(folder, tmp_path / f"{name}_out", TEST_FROM, rows_per_bucket=50)
        assert contents(tmp_path / f"{name}_out") == plain, name


def test_one_table_in_two_forms_is_refused(tmp_path: Path) -> None:
    logs = Logs.random(9)
    logs.write_csv(logs.write(tmp_path / "logs"))
    with pytest.raises(SourceError, match=r"video_events\.parquet and in video_events\.csv; keep one"):
        prepare_logs(tmp_path / "logs", tmp_path / "out", TEST_FROM)


def test_parts_of_different_columns_are_refused(tmp_path: Path) -> None:
    folder = Logs.random(9).write_parts(tmp_path / "logs", 2)
    part = folder / "live_events" / "part-1.parquet"
    pl.read_parquet(part).with_columns(request_time="event_time").write_parquet(part)
    with pytest.raises(SourceError, match=r"part-1\.parquet: not of the same columns as .*part-0.*: request_time"):
        prepare_logs(folder, tmp_path / "out", TEST_FROM)


@pytest.mark.parametrize("form", ["csv", "parts"])
def test_a_corrupt_row_is_named_by_its_own_file(tmp_path: Path, form: str) -> None:
    logs = Logs.random(5).set("live_events", 44, like=7)
    folder = logs.write_csv(tmp_path / "logs") if form == "csv" else logs.write_parts(tmp_path / "logs", 2)
    where = r"live_events\.csv: line 46" if form == "csv" else r"live_events/part-1\.parquet: row 14"
    with pytest.raises(SourceError, match=f"{where}: like is 7, not an integer from 0 to 1; 1 of"):
        prepare_logs(folder, tmp_path / "out", TEST_FROM)
    counts = prepare_logs(folder, tmp_path / "out", TEST_FROM, on_error="skip").info.counts
    assert (counts["corrupt_live_events"], counts["live_events"]) == (1, 59)


def test_a_corrupt_line_of_a_csv_file_is_named(tmp_path: Path) -> None:
    folder = Logs.random(5).write_csv(tmp_path / "logs")
    lines = (folder / "video_events.csv").read_text().splitlines()
    (folder / "video_events.csv").write_text("\n".join([*lines[:7], "1,2,3", *lines[7:]]))
    with pytest.raises(SourceError, match=rf"video_events\.csv: line 8: 3 columns, not {len(lines[0].split(','))}"):
        prepare_logs(folder, tmp_path / "out", TEST_FROM)


def test_text_ids_are_hashed_as_the_service_does(tmp_path: Path) -> None:
    logs = Logs.random(16)
    text = logs.with_text_ids("user_id", "author_id", "live_id", "view_id")
    data = prepare(text, tmp_path / "text")
    assert data.schema.ids == "string"
    assert {data.info.counts[f"hash_collisions_{name}"] for name in ("user_id", "author_id", "live_id", "view_id")} == {
        0
    }
    expected = {to_id64(f"u{user}", "string"): user for user in range(1, 7)}
    assert sorted(data.user_ids().tolist()) == sorted(expected)
    plain = prepare(logs, tmp_path / "plain")
    assert plain.schema.ids == "integer"
    order = [plain.user_ids().tolist().index(expected[user]) for user in data.user_ids().tolist()]
    assert np.array_equal(data.users["activity_group"], plain.users["activity_group"][order])
    for column in ("author_id", "live_id"):
        hashes = [to_id64(f"u{value}", "string") for value in plain.samples[column].tolist()]
        assert sorted(data.samples[column].tolist()) == sorted(hashes)
    views = [to_id64(f"u{value}", "string") for value in plain.events["video"].columns["view_id"].tolist()]
    assert sorted(data.events["video"].columns["view_id"].tolist()) == sorted(views)


def test_categories_are_text_too(tmp_path: Path) -> None:
    logs = Logs.random(16).with_text_ids("author_id")
    plain = contents(prepare(logs, tmp_path / "plain").path)
    for frame in logs.frames:
        if "author_id" in logs.frames[frame].columns:
            logs.frames[frame] = logs.frames[frame].with_columns(pl.col("author_id").cast(pl.Categorical))
    assert contents(prepare(logs, tmp_path / "categories").path) == plain


def test_text_ids_of_csv_files_are_named_in_the_meta_file(tmp_path: Path) -> None:
    logs = Logs.random(16).with_text_ids("user_id", "author_id")
    parquet = prepare(logs, tmp_path / "parquet")
    folder = logs.write_csv(tmp_path / "logs")
    with pytest.raises(
        SourceError, match=r"line 2: user_id is u\d, not an integer .*\(text ids: .* string_ids of meta"
    ):
        prepare_logs(folder, tmp_path / "out", TEST_FROM)
    (folder / "meta.json").write_text('{"string_ids": ["user_id", "author_id"]}')
    assert contents(prepare_logs(folder, tmp_path / "out", TEST_FROM).path) == contents(parquet.path)


def test_an_id_column_is_text_everywhere_or_nowhere(tmp_path: Path) -> None:
    logs = Logs.random(16)
    mixed = Logs(logs.with_text_ids("user_id").frames | {"users": logs.frames["users"]})
    with pytest.raises(SourceError, match="user_id: text in some tables, and an integer in users"):
        prepare(mixed, tmp_path)


def test_a_missing_text_id_is_corrupt(tmp_path: Path) -> None:
    logs = Logs.random(16).with_text_ids("author_id")
    empty = pl.when(pl.int_range(pl.len()) == 3).then(pl.lit("")).otherwise("author_id").alias("author_id")
    logs.frames["authors"] = logs.frames["authors"].with_columns(empty)
    with pytest.raises(SourceError, match=r"authors\.parquet: row 3: author_id is missing; 1 of 5"):
        prepare(logs, tmp_path)


def test_two_texts_with_one_hash_are_found() -> None:
    texts = pl.Series(["a", "b", "c", "d"])
    assert find_collision(texts, np.array([5, 3, 4, 3])) == ("b", "d")
    assert find_collision(texts, hash_ids(texts).to_numpy()) is None


def asked_earlier(logs: Logs, ms: int) -> Logs:
    earlier = logs.frames["live_events"].with_columns(request_time=pl.col("event_time") - ms)
    return Logs(logs.frames | {"live_events": earlier})


def test_a_sample_is_of_the_time_it_was_asked_for(tmp_path: Path) -> None:
    logs = asked_earlier(Logs.random(17), 3_000)
    data = prepare(logs, tmp_path)
    live = logs.frames["live_events"].sort("request_time", "user_id", "author_id", "live_id", maintain_order=True)
    assert np.array_equal(data.samples["request_time"], live["request_time"])
    assert np.array_equal(np.sort(data.events["live"].columns["event_time"]), live["event_time"].sort())


def test_a_request_is_not_later_than_its_view(tmp_path: Path) -> None:
    logs = asked_earlier(Logs.random(17), 3_000).set("live_events", 5, request_time=START_MS + 4 * DAY_MS)
    with pytest.raises(
        SourceError, match=rf"row 5: request_time is {START_MS + 4 * DAY_MS}, later than event_time \d+;"
    ):
        prepare(logs, tmp_path)


def with_truth(logs: Logs, seed: int) -> Logs:
    """The truth of every live view, and of one that is not there, in no order; not of every task."""
    live = logs.frames["live_events"].select("user_id", "view_id")
    other = pl.DataFrame({"user_id": [1], "view_id": [77_777]})
    rng = np.random.default_rng(seed)
    rows = pl.concat([live, other]).sample(fraction=1, shuffle=True, seed=seed)
    return Logs(logs.frames | {"live_truth": rows.with_columns(ctr=pl.Series(rng.random(len(rows))), gtr=pl.lit(0.25))})


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_the_true_probabilities_go_with_their_samples(tmp_path: Path, form: str) -> None:
    logs = with_truth(Logs.random(18), 18)
    folder = logs.write_csv(tmp_path / "logs") if form == "csv" else logs.write(tmp_path / "logs")
    data = prepare_logs(folder, tmp_path / "out", TEST_FROM, rows_per_bucket=40)
    live = logs.frames["live_events"].join(logs.frames["live_truth"], on=["user_id", "view_id"], maintain_order="left")
    live = live.sort("event_time", "user_id", "author_id", "live_id", maintain_order=True)
    truth = data.samples["truth"]
    assert truth.shape == (60, 6)
    assert np.array_equal(truth[:, 0], live["ctr"].to_numpy().astype(np.float32))
    assert np.isnan(truth[:, 1:5]).all()
    assert (truth[:, 5] == 0.25).all()
    assert data.info.counts["truth_without_view"] == 1


def test_a_probability_is_from_0_to_1(tmp_path: Path) -> None:
    logs = with_truth(Logs.random(18), 18)
    logs.frames["live_truth"] = logs.frames["live_truth"].with_columns(ctr=pl.lit(1.5))
    with pytest.raises(
        SourceError, match=r"live_truth\.parquet: row 0: ctr is 1\.5, not a number from 0 to 1; 61 of 61"
    ):
        prepare(logs, tmp_path)


def test_a_truth_of_no_task_is_refused(tmp_path: Path) -> None:
    logs = with_truth(Logs.random(18), 18)
    logs.frames["live_truth"] = logs.frames["live_truth"].drop("ctr", "gtr")
    with pytest.raises(SourceError, match=r"live_truth\.parquet: none of the columns ctr, etr, lvtr, ltr, cmtr, gtr"):
        prepare(logs, tmp_path)


def test_what_the_meta_file_says(tmp_path: Path) -> None:
    folder = Logs.random(19).write(tmp_path / "logs")
    meta = {"source": "mine", "group_names": ["a"], "simulation": {"seed": 1}, "more": 1}
    (folder / "meta.json").write_text(json.dumps(meta))
    data = prepare_logs(folder, tmp_path / "out", TEST_FROM)
    assert (data.info.source, data.info.group_names) == ("mine", ("a",))
    assert json.loads((tmp_path / "out" / "simulation.json").read_text()) == {"seed": 1}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "Invalid JSON"),
        ('{"format_version": 2}', "format_version: "),
        ('{"string_ids": ["tag"]}', "string_ids.0: "),
    ],
)
def test_what_is_wrong_in_the_meta_file_is_said(tmp_path: Path, text: str, problem: str) -> None:
    folder = Logs.random(19).write(tmp_path / "logs")
    (folder / "meta.json").write_text(text)
    with pytest.raises(SourceError, match=rf"meta\.json: {problem}"):
        prepare_logs(folder, tmp_path / "out", TEST_FROM)


def test_the_tables_of_ids_are_reported(tmp_path: Path) -> None:
    notes = prepare(Logs.random(20), tmp_path).info.notes
    assert [note.split(":")[0] for note in notes] == [
        "embedding table author_id",
        "embedding table candidate.live_id",
        "embedding table user.user_id",
    ]
    assert notes[2] == "embedding table user.user_id: 6 ids in 32,767 rows; about 0.0% of them share a row with another"


@pytest.mark.parametrize(("ids", "rows"), [(1, 10), (30, 100), (500, 400), (0, 5)])
def test_the_expected_share_is_that_of_random_rows(ids: int, rows: int) -> None:
    rng = np.random.default_rng(0)
    draws = rng.integers(0, rows, (2_000, ids))
    alone = [(np.unique(draw, return_counts=True)[1] == 1).sum() for draw in draws]
    assert sharing_share(ids, rows) == pytest.approx(1 - np.mean(alone) / max(ids, 1) if ids else 0.0, abs=0.01)


def test_distinct_ids_are_counted_over_columns_without_the_missing() -> None:
    assert distinct_ids([np.array([1, 2, MISSING]), np.array([2, 3])]) == 3
    assert distinct_ids([np.array([1, 2])]) == 2
    assert distinct_ids([np.empty(0, np.int64)]) == 0
