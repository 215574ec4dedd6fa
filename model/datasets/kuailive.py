"""KuaiLive-M3 as PREPARED data: the published files, unchanged, lazily scanned.

Users of Kuaishou over live streaming and short video (Hugging Face: imgkkk2004/KuaiLive-M3).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl

from model.datasets.buckets import ROWS_PER_BUCKET
from model.datasets.kuailive_build import NEW_LIKE, Attributes, attach, build
from model.datasets.kuailive_content import EMBEDDING_FILE, Codebook, room_codes
from model.datasets.kuailive_survey import END, START, Survey, survey_entries
from model.datasets.kuailive_tables import Reader, Words, find_table, parse, place
from model.datasets.kuailive_view import LIVE_ACTS, TASKS, UTC_OFFSET_S, VIEWED_BITS, kuailive_schema, kuailive_view
from model.datasets.prepared import Prepared, PreparedInfo
from model.datasets.source import (
    DURATION_LIMITS,
    FLAG_LIMITS,
    SMALL_LIMITS,
    Check,
    Limits,
    OnError,
    Progress,
    local_midnight,
    quiet,
)
from model.datasets.writer import write_prepared

LIVE_FILE = "live_interaction.csv"
SHOW_FILE = "live_show.parquet"
VIDEO_FILE = "photo_play.parquet"
ROOM_FILE = "live_room_meta.parquet"
AUTHOR_FILE = "author_profile.csv"
USER_FILE = "user_id_set.csv"
PHOTO_FILE = "photo_meta.parquet"
TAG_FILE = "photo_tag.csv"
FILES = (LIVE_FILE, SHOW_FILE, VIDEO_FILE, ROOM_FILE, AUTHOR_FILE, USER_FILE, PHOTO_FILE, TAG_FILE)
CODEBOOK_FILE = "content_codebook.npy"

CONTENT_NOTE = "a room's embedding is of its whole broadcast: some of it may be later than a request"

# Batch of the paper; not chosen by experiment, because the files were not at hand.
RECOMMENDED_TRAINING = {"batch_size": 5_000, "learning_rate": 1e-3, "epochs": 2}

_IDS = (0, 2**63 - 1)
_VIEWED_IDS = (0, 2**VIEWED_BITS - 1)
_COUNTS = dict(
    zip(
        LIVE_ACTS,
        ("like_cnt", "comment_cnt", "send_gift_cnt", "follow_author_cnt", "share_cnt", "report_live_cnt"),
        strict=True,
    )
)
_ENTRY_CATEGORIES = {"page": "live_source_category", "enter_action": "enter_live_action"}
_ENTRY_LIMITS: Limits = {
    "user_id": _IDS,
    "author_id": _IDS,
    "live_id": _VIEWED_IDS,
    "is_follow_enter": FLAG_LIMITS,
    "play_duration": DURATION_LIMITS,
    **dict.fromkeys(_COUNTS.values(), (0, 2**31 - 1)),
}
_ENTRY_COLUMNS = (*_ENTRY_LIMITS, START, END, "p_date", *_ENTRY_CATEGORIES.values())


@dataclass(frozen=True)
class Logs:
    """A release, checked."""

    tables: dict[str, pl.LazyFrame]  # entries, shows, plays
    attributes: Attributes
    users: pl.DataFrame
    rooms: pl.DataFrame  # with the attributes of their authors
    counts: dict[str, int]
    notes: tuple[str, ...]


def prepare_kuailive(
    data: str | Path,
    out: str | Path,
    test_from: date,
    on_error: OnError = "stop",
    progress: Progress = quiet,
    content: bool = False,
    seed: int = 0,
    rows_per_bucket: int = ROWS_PER_BUCKET,
) -> Prepared:
    """Turn the published files into a PREPARED folder.

    data: the folder that holds the files, or holds them in `live/` and `short_video/`.  test_from: first test day
    (UTC+8); the day before it is for validation.  content: codes of the rooms' embeddings as fields of a candidate;
    their codebook is kept as content_codebook.npy [parts, values, numbers].  seed: of the codebook.
    Corrupt rows stop with SourceError, or are left out and counted (`on_error`); missing files and columns always stop.

    Example: ``prepare_kuailive("KuaiLive-M3", "prepared", date(2025, 5, 20))``
    """
    names = (*FILES, *([EMBEDDING_FILE] if content else []))
    tables = {name: find_table(Path(data), name) for name in names}
    folder = Path(out)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        progress(f"parsing {LIVE_FILE}")
        tables[LIVE_FILE] = parse(tables[LIVE_FILE], _ENTRY_COLUMNS, Path(scratch))
        survey = survey_entries(tables[LIVE_FILE])
        reader = Reader(tables, on_error, {"other_date": survey.other_date}, survey.wall_offset_s)
        progress("reading rooms, authors and videos")
        rooms, codebook = _read_rooms(reader, test_from, content, seed)
        logs = _read_logs(reader, rooms, survey, progress)
        _write(folder, logs, test_from, content, rows_per_bucket, progress)
    if codebook:
        np.save(folder / CODEBOOK_FILE, codebook.centres)
    return Prepared.open(folder)


def _read_logs(reader: Reader, rooms: pl.DataFrame, survey: Survey, progress: Progress) -> Logs:
    authors, author_words = _read_authors(reader)
    videos, video_words = _read_videos(reader)
    progress("checking the logs")
    entries, entry_words = _read_entries(reader, survey.play_unit_ms)
    shows, plays = _read_shows(reader), _read_plays(reader)
    users = reader.read(USER_FILE, {"user_id": _IDS}).select("user_id").unique().sort("user_id").collect()
    return Logs(
        tables={"entries": entries, "shows": shows, "plays": plays},
        attributes=Attributes(rooms.drop("author_id"), authors, videos),
        users=users,
        rooms=attach(rooms, authors, "author_id"),
        counts=reader.counts,
        notes=(*_notes(survey), *_vocabularies(entry_words | author_words | video_words)),
    )


def _write(folder: Path, logs: Logs, test_from: date, content: bool, rows_per_bucket: int, progress: Progress) -> None:
    info = PreparedInfo(
        source="kuailive-m3",
        test_from=test_from,
        tasks=TASKS,
        splits={},
        counts=logs.counts,
        training=RECOMMENDED_TRAINING,
        notes=(*logs.notes, *([CONTENT_NOTE] if content else [])),
    )
    write_prepared(
        folder,
        info=info,
        schema=kuailive_schema(content),
        view=kuailive_view(content),
        tables=logs.tables,
        build=partial(build, attributes=logs.attributes),
        users=logs.users,
        authors=logs.rooms,
        rows_per_bucket=rows_per_bucket,
        progress=progress,
    )


def _read_entries(reader: Reader, unit_ms: int) -> tuple[pl.LazyFrame, Words]:
    """Every entry into a live room, and the names of its categories."""
    words = reader.vocabularies(LIVE_FILE, _ENTRY_CATEGORIES)
    times, others = {START: "event_time", END: "ended"}, tuple(_ENTRY_CATEGORIES.values())
    rows = reader.read(LIVE_FILE, _ENTRY_LIMITS, times, others, [_span_check(START, END)])
    entries = rows.select(
        *("user_id", "author_id", "live_id", "event_time", "ended"),
        following="is_follow_enter",
        play_time=(pl.col("play_duration").cast(pl.Int64) * unit_ms).clip(upper_bound=DURATION_LIMITS[1]),
        **{name: place(column, words[name]) for name, column in _ENTRY_CATEGORIES.items()},
        **{act: (pl.col(count) > 0).cast(pl.Int8) for act, count in _COUNTS.items()},
    )
    return entries, words


def _span_check(start: str, end: str) -> Check:
    sound = (pl.col("ended") - pl.col("event_time")).is_between(*DURATION_LIMITS).fill_null(True)
    shown = pl.col(end).cast(pl.String)
    return Check(~sound, pl.format(f"{end} is {{}}, before {start} or more than 24 days after it", shown))


def _read_shows(reader: Reader) -> pl.LazyFrame:
    limits = {"user_id": _IDS, "author_id": _IDS, "live_id": _VIEWED_IDS}
    return reader.read(SHOW_FILE, limits, {"show_timestamp": "event_time"})


def _read_plays(reader: Reader) -> pl.LazyFrame:
    """Every play of a short video; a follow is one that was not there before."""
    flags = ("is_complete_play", "is_follow_before_play", "is_follow_after_play")
    limits: Limits = {
        "user_id": _IDS,
        "author_id": _IDS,
        "photo_id": _VIEWED_IDS,
        "like_status_type": (-SMALL_LIMITS[1], SMALL_LIMITS[1]),
        **dict.fromkeys(flags, FLAG_LIMITS),
    }
    start, end = "enter_timestamp", "leave_timestamp"
    rows = reader.read(VIDEO_FILE, limits, {start: "event_time", end: "ended"}, checks=[_span_check(start, end)])
    followed = (pl.col("is_follow_after_play") == 1) & (pl.col("is_follow_before_play") == 0)
    return rows.select(
        *("user_id", "author_id", "photo_id", "event_time", "ended"),
        like_status="like_status_type",
        complete_play="is_complete_play",
        follow=followed.cast(pl.Int8),
    )


def _read_rooms(reader: Reader, test_from: date, content: bool, seed: int) -> tuple[pl.DataFrame, Codebook | None]:
    """live_id, author_id, start_hour (local), and with content the codes of the embedding.

    A room has a row per day; its end and its duration are not read, because a request does not know them.
    """
    rows = reader.read(
        ROOM_FILE,
        {"live_id": _VIEWED_IDS, "author_id": _IDS},
        {"start_timestamp": "start"},
        nullable=("start_timestamp",),
    )
    rooms = rows.group_by("live_id").agg(pl.col("author_id", "start").min()).collect(engine="streaming")
    rooms = rooms.sort("live_id")
    codebook = None
    if content:
        codes, codebook = room_codes(reader, rooms, local_midnight(test_from, UTC_OFFSET_S), seed)
        rooms = rooms.join(codes, on="live_id", how="left", maintain_order="left")
    hour = (pl.col("start") + UTC_OFFSET_S * 1000) // 3_600_000 % 24
    return rooms.with_columns(start_hour=hour.cast(pl.Int8)).drop("start"), codebook


def _read_authors(reader: Reader) -> tuple[pl.DataFrame, Words]:
    words = {"gender": "gender", "age": "age_segment", "fans": "fans_user_num"}
    names = reader.vocabularies(AUTHOR_FILE, words)
    rows = reader.read(AUTHOR_FILE, {"author_id": _IDS}, others=tuple(words.values()))
    places = {name: place(column, names[name]) for name, column in words.items()}
    authors = rows.select("author_id", **places).collect(engine="streaming")
    return authors.unique("author_id", keep="last", maintain_order=True), names


def _read_videos(reader: Reader) -> tuple[pl.DataFrame, Words]:
    """photo_id, tag (first level), duration [ms]."""
    column = "first_level_category_name"
    names = reader.vocabularies(TAG_FILE, {"tag": column})
    tags = reader.read(TAG_FILE, {"photo_id": _VIEWED_IDS}, others=[column])
    tags = tags.select("photo_id", tag=place(column, names["tag"]))
    metas = reader.read(PHOTO_FILE, {"photo_id": _VIEWED_IDS, "duration": (0, 2**63 - 1)}, nullable=("duration",))
    metas = metas.select("photo_id", pl.col("duration").clip(upper_bound=DURATION_LIMITS[1]).cast(pl.Int32))
    # Of repeats the greatest value stays, so that the order in which a scan delivers rows does not matter.
    known = [rows.group_by("photo_id").max().collect(engine="streaming") for rows in (tags, metas)]
    return known[0].join(known[1], on="photo_id", how="full", coalesce=True), names


def _notes(survey: Survey) -> tuple[str, ...]:
    clock = "UTC" if survey.wall_offset_s == 0 else "UTC+8"
    unit = "ms" if survey.play_unit_ms == 1 else "s"
    return (
        f"play_duration is read as {unit}; times that carry no zone, where there are any, as {clock}",
        f"{survey.other_date} entries have a `p_date` that is not the day of their start (UTC+8); the start decides",
        f"a like of a video is like_status_type {NEW_LIKE}; the counts say how often each value occurs",
        "the page of a request is not known: impressions have none",
        "author attributes are one snapshot without a date: some may be later than the requests",
    )


def _vocabularies(words: Words) -> tuple[str, ...]:
    return tuple(f"{name} is the place in {json.dumps(list(v), ensure_ascii=False)}" for name, v in words.items())
