"""KuaiLive-M3 in the catalogue's format: how values are written, what is corrupt, room embeddings, a forward pass."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import pytest
from kuailive_files import NEEDED, Release, contents, random_release, wall

from feature_store.schema import MISSING, widen
from model.config import ModelConfig
from model.datasets.kuailive import CODEBOOK_FILE, prepare_kuailive
from model.datasets.kuailive_content import Codebook
from model.datasets.kuailive_view import CODES
from model.datasets.prepared import Prepared
from model.datasets.source import SourceError
from model.evaluate import predict
from model.farm import Ranker

TEST_FROM = date(2025, 5, 7)
ENTRIES, SHOWS, PLAYS = "live_interaction.csv", "live_show.parquet", "photo_play.parquet"
ROOMS, EMBEDDINGS, AUTHORS = "live_room_meta.parquet", "live_emb_64.parquet", "author_profile.csv"
RELEASE = random_release(2)


def prepare(release: Release, folder: Path, **options: Any) -> Prepared:
    return prepare_kuailive(release.write(folder / "release"), folder / "out", TEST_FROM, **options)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(RELEASE, tmp_path_factory.mktemp("plain"))


def iso(suffix: str, hours: int) -> Callable[[Any], Any]:
    return lambda ms: str(wall(timedelta(hours=hours), suffix)(ms)).replace(" ", "T")


FORMS = [
    ("ms", lambda ms: ms),
    ("s", lambda ms: ms // 1000),
    ("zoned", iso("Z", 0)),
    ("text", iso("+08:00", 8)),
    ("text", wall(timedelta(hours=-3, minutes=-30), "-03:30")),
]


@pytest.mark.parametrize(("parquet", "text"), FORMS)
def test_times_are_read_as_they_are_written(
    tmp_path: Path, plain: Prepared, parquet: str, text: Callable[[Any], Any]
) -> None:
    folder = RELEASE.write(tmp_path / "release", text=text, parquet=parquet)
    data = prepare_kuailive(folder, tmp_path / "out", TEST_FROM)
    assert contents(data) == contents(plain)
    assert data.info.counts["other_date"] == 0


def test_the_partition_date_tells_the_clock_of_times_without_a_zone(tmp_path: Path, plain: Prepared) -> None:
    folder = RELEASE.write(tmp_path / "release", text=wall(timedelta(0)), parquet="zoned")
    data = prepare_kuailive(folder, tmp_path / "out", TEST_FROM)
    assert contents(data) == contents(plain)
    assert any("carry no zone, where there are any, as UTC" in note for note in data.info.notes)
    assert not any("as UTC" in note and "UTC+8" not in note for note in plain.info.notes)


def test_times_written_in_two_ways_are_refused(tmp_path: Path) -> None:
    folder = RELEASE.write(tmp_path / "release", text=lambda ms: ms if ms % 600_000 else ms // 1000)
    with pytest.raises(
        SourceError, match=r"live_interaction\.csv: live_play_start_timestamp: times are written in more"
    ):
        prepare_kuailive(folder, tmp_path / "out", TEST_FROM)


def test_other_dates_are_counted(tmp_path: Path, plain: Prepared) -> None:
    release = RELEASE.put(ENTRIES, 3, p_date="20250401").put(ENTRIES, 5, p_date=None).put(ENTRIES, 6, p_date="soon")
    data = prepare(release, tmp_path)
    assert data.info.counts["other_date"] == 3
    assert contents(data) == contents(plain)


@pytest.mark.parametrize(("divisor", "unit"), [(1_000, "s"), (60_000, None)])
def test_the_unit_of_play_duration(tmp_path: Path, plain: Prepared, divisor: int, unit: str | None) -> None:
    rows = [row | {"play_duration": row["play_duration"] // divisor} for row in RELEASE.rows[ENTRIES]]
    release = Release(RELEASE.rows | {ENTRIES: rows})
    if unit is None:
        with pytest.raises(SourceError, match=r"play_duration: of \d+ entries, 0 fit .* in ms and 0 in s"):
            prepare(release, tmp_path)
    else:
        data = prepare(release, tmp_path)
        assert contents(data) == contents(plain)
        assert data.info.notes[0].startswith("play_duration is read as s;")


def test_integers_may_be_written_as_text_or_as_whole_floats(tmp_path: Path, plain: Prepared) -> None:
    rows = {
        file: [
            {name: convert(value) if name in names else value for name, value in row.items()}
            for row in RELEASE.rows[file]
        ]
        for file, names, convert in (
            (SHOWS, ("user_id", "live_id"), str),
            (PLAYS, ("like_status_type", "photo_id"), float),
        )
    }
    assert contents(prepare(Release(RELEASE.rows | rows), tmp_path)) == contents(plain)


CORRUPT: list[tuple[str, dict[str, Any], str]] = [
    (ENTRIES, {"user_id": "one"}, "user_id is one, not an integer"),
    (ENTRIES, {"live_id": 2**25}, "live_id is 33554432, not an integer from 0 to 33554431"),
    (ENTRIES, {"like_cnt": -1}, "like_cnt is -1"),
    (ENTRIES, {"play_duration": None}, "play_duration is missing"),
    (ENTRIES, {"live_play_end_timestamp": None}, "live_play_end_timestamp is missing, not a time"),
    (ENTRIES, {"live_play_end_timestamp": 1_600_000_000_000}, "live_play_end_timestamp is 2020-09-13 .*, before"),
    (SHOWS, {"show_timestamp": None}, "show_timestamp is missing, not a time"),
    (SHOWS, {"author_id": None}, "author_id is missing"),
    (PLAYS, {"photo_id": 3.7}, "photo_id is 3.7, not an integer"),
    (PLAYS, {"is_follow_after_play": 2}, "is_follow_after_play is 2, not an integer from 0 to 1"),
    (PLAYS, {"leave_timestamp": 1_600_000_000_000}, "leave_timestamp is 2020-09-13 .*, before enter_timestamp"),
    (ROOMS, {"author_id": None}, "author_id is missing"),
    ("photo_meta.parquet", {"duration": -5}, "duration is -5"),
    ("photo_tag.csv", {"photo_id": "cat"}, "photo_id is cat"),
    (AUTHORS, {"author_id": None}, "author_id is missing"),
    ("user_id_set.csv", {"user_id": -1}, "user_id is -1"),
]


@pytest.mark.parametrize(("file", "values", "problem"), CORRUPT)
def test_corrupt_rows_stop_or_are_counted(tmp_path: Path, file: str, values: dict[str, Any], problem: str) -> None:
    release, rows = RELEASE.put(file, 3, **values).put(file, 1, **values), len(RELEASE.rows[file])
    where = "line 3" if file.endswith(".csv") else "row 1"
    with pytest.raises(SourceError, match=rf"{file}: {where}: {problem}.*; 2 of {rows} rows are corrupt"):
        prepare(release, tmp_path)
    data = prepare(release, tmp_path, on_error="skip")
    assert data.info.counts[f"corrupt_{file.split('.')[0]}"] == 2
    assert sum(n for name, n in data.info.counts.items() if name.startswith("corrupt_")) == 2


def test_values_that_may_be_missing(tmp_path: Path) -> None:
    release = RELEASE.put(ROOMS, 0, start_timestamp=None).put("photo_meta.parquet", 0, duration=None)
    data = prepare(release.put(AUTHORS, 0, gender=None), tmp_path)
    assert sum(n for name, n in data.info.counts.items() if name.startswith("corrupt_")) == 0
    hours = dict(zip(data.authors["live_id"].tolist(), data.authors["start_hour"].tolist(), strict=True))
    assert (hours[1], hours[2]) == (-128, 2)


def test_a_line_with_more_columns_than_the_header_is_corrupt(tmp_path: Path) -> None:
    path = RELEASE.write(tmp_path / "release") / "live" / ENTRIES
    path.write_text(path.read_text() + "1,2,3\n")
    with pytest.raises(SourceError, match=r"live_interaction\.csv: line 182: 3 columns, not 20"):
        prepare_kuailive(tmp_path / "release", tmp_path / "out", TEST_FROM)


def test_only_what_is_needed_must_be_there_in_any_of_the_folders(tmp_path: Path, plain: Prepared) -> None:
    """So no history can hold anything of photo_interaction, nor a request the end of a room."""
    rooms = [row | {"end_timestamp": None, "live_duration": -1} for row in RELEASE.rows[ROOMS]]
    folder = Release(RELEASE.rows | {ROOMS: rooms}).write(tmp_path / "release")
    for path in [path for path in folder.rglob("*.*") if path.is_file()]:
        path.rename(folder / path.name) if path.name in NEEDED else path.unlink()
    rmtree(folder / "live")
    rmtree(folder / "short_video")
    assert sorted(path.name for path in folder.iterdir()) == sorted(NEEDED)
    assert contents(prepare_kuailive(folder, tmp_path / "out", TEST_FROM)) == contents(plain)


@pytest.mark.parametrize("name", NEEDED)
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    folder = RELEASE.write(tmp_path / "release")
    next(folder.rglob(name)).unlink()
    with pytest.raises(SourceError, match=rf"{name}: not there, nor in live/, short_video/"):
        prepare_kuailive(folder, tmp_path / "out", TEST_FROM)


def test_a_missing_column_and_what_is_no_parquet_are_named(tmp_path: Path) -> None:
    folder = RELEASE.write(tmp_path / "release")
    path = folder / "live" / ENTRIES
    path.write_text(path.read_text().replace("send_gift_cnt", "gifts", 1))
    with pytest.raises(SourceError, match=r"live_interaction\.csv: no column send_gift_cnt"):
        prepare_kuailive(folder, tmp_path / "out", TEST_FROM)
    (folder / "live" / SHOWS).write_text("live_id,user_id\n")
    with pytest.raises(SourceError, match=r"live_show\.parquet: not a Parquet file"):
        prepare_kuailive(folder, tmp_path / "out", TEST_FROM)


def test_the_size_of_a_bucket_changes_nothing(tmp_path: Path, plain: Prepared) -> None:
    data = prepare(RELEASE, tmp_path, rows_per_bucket=50)
    assert contents(data) == contents(plain)
    assert data.info == plain.info


def test_a_codebook_finds_separate_groups() -> None:
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 3, (200, 2))
    vectors = np.repeat(groups, 4, axis=1) * 10.0 + rng.normal(size=(200, 8)) * 0.1
    book = Codebook.fit(vectors, parts=2, values=3, rounds=10, seed=1)
    codes = book.codes(vectors)
    for part in range(2):
        pairs = {(int(group), int(code)) for group, code in zip(groups[:, part], codes[:, part], strict=True)}
        assert len(pairs) == len({code for _, code in pairs}) == 3
    restored = np.concatenate([book.centres[part][codes[:, part]] for part in range(2)], axis=1)
    assert np.abs(restored - np.repeat(groups, 4, axis=1) * 10.0).max() < 0.1


def test_a_codebook_of_fewer_vectors_than_values_restores_them() -> None:
    vectors = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32)
    book = Codebook.fit(vectors, parts=CODES, values=256, rounds=3, seed=0)
    codes = book.codes(vectors)
    assert book.centres.shape == (CODES, 5, 8)
    restored = np.concatenate([book.centres[part][codes[:, part]] for part in range(CODES)], axis=1)
    assert np.allclose(restored, vectors, atol=1e-6)


def test_room_embeddings_become_codes_when_asked_for(tmp_path: Path, plain: Prepared) -> None:
    vectors = RELEASE.rows[EMBEDDINGS]
    release = RELEASE.put(EMBEDDINGS, 4, embedding=vectors[9]["embedding"]).put(EMBEDDINGS, 5, embedding=None)
    data = prepare(release, tmp_path, content=True)
    names = [f"emb_{i}" for i in range(CODES)]
    assert set(data.authors) - set(plain.authors) == set(names)
    rooms = data.authors["live_id"]
    codes = np.stack([widen(np.asarray(data.authors[name])) for name in names], axis=1)
    assert (codes[rooms == 5] == codes[rooms == 10]).all()
    assert (codes[rooms == 6] == MISSING).all()
    assert len(np.unique(codes[rooms != 6], axis=0)) == 16
    of_samples = {live: codes[rooms == live][0] for live in rooms.tolist()}
    for row, live in enumerate(data.samples["live_id"].tolist()):
        held = [widen(np.asarray(data.samples[name]))[row] for name in names]
        assert np.array_equal(held, of_samples.get(live, np.full(CODES, MISSING))), live
    assert np.load(data.path / CODEBOOK_FILE).shape == (CODES, 16, 8)


def test_the_codebook_knows_no_room_that_started_on_a_test_day(tmp_path: Path) -> None:
    late = RELEASE.put(ROOMS, 2, start_timestamp=int(np.datetime64("2025-05-06T16:00", "ms").astype(int)))
    far = late.put(EMBEDDINGS, 2, embedding=[1e3] * 64)
    books = [prepare(each, tmp_path / str(i), content=True).path / CODEBOOK_FILE for i, each in enumerate((late, far))]
    assert np.array_equal(np.load(books[0]), np.load(books[1]))
    early = prepare(RELEASE.put(EMBEDDINGS, 2, embedding=[1e3] * 64), tmp_path / "early", content=True)
    assert not np.array_equal(np.load(books[0]), np.load(early.path / CODEBOOK_FILE))


@pytest.mark.parametrize(
    ("vector", "problem"),
    [([1.0] * 63, "embedding has 63 numbers, not 64"), ([float("nan")] * 64, "embedding holds a value that is no")],
)
def test_corrupt_embeddings(tmp_path: Path, vector: list[float], problem: str) -> None:
    release = RELEASE.put(EMBEDDINGS, 7, embedding=vector)
    with pytest.raises(SourceError, match=rf"live_emb_64\.parquet: row 7: {problem}"):
        prepare(release, tmp_path, content=True)
    assert prepare(release, tmp_path, content=True, on_error="skip").info.counts["corrupt_live_emb_64"] == 1


@pytest.mark.parametrize("content", [False, True])
def test_farm_ranks_what_was_prepared(tmp_path: Path, content: bool) -> None:
    data = Prepared.open(prepare(RELEASE, tmp_path, content=content).path)
    rows = data.rows("test")
    scores = predict(Ranker(ModelConfig(), data.view), data, rows)
    assert scores.shape == (len(rows), 6)
    assert np.isfinite(scores).all()
    assert scores.std(axis=0).min() > 0
