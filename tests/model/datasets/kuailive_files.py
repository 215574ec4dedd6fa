"""Small files in exactly the format of KuaiLive-M3's catalogue: file names, columns, types, folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from feature_store.schema import DOMAINS
from model.datasets.prepared import Prepared

CATALOGUE = {  # name:type of every column; "embeddings" is array[float]
    "author_profile.csv": "author_id:int is_photo_author:int is_live_author:int gender:str age_segment:str"
    " fans_user_num:str",
    "user_id_set.csv": "user_id:int",
    "live/live_interaction.csv": "user_id:int author_id:int live_id:int live_play_start_timestamp:timestamp"
    " live_play_end_timestamp:timestamp p_date:str live_source_category:str enter_live_action:str is_auto_play:int"
    " is_follow_enter:int is_follow_leave:int play_duration:int like_cnt:int comment_cnt:int send_gift_cnt:int"
    " send_gift_num:int follow_author_cnt:int cancel_follow_author_cnt:int share_cnt:int report_live_cnt:int",
    "live/live_show.parquet": "live_id:int user_id:int author_id:int show_timestamp:timestamp",
    "live/live_comment.csv": "live_stream_id:int user_id:int author_id:int content:str comment_ts:int",
    "live/live_like.csv": "user_id:int live_id:int like_timestamp:timestamp",
    "live/live_share.csv": "user_id:int live_id:int author_id:int share_timestamp:timestamp is_share_success:int",
    "live/live_questionnaire.csv": "author_id:int live_stream_id:int user_id:int select_option:str"
    " second_select_option:str",
    "live/live_room_set.csv": "live_id:int",
    "live/live_room_meta.parquet": "live_id:int author_id:int live_name:str start_timestamp:timestamp"
    " end_timestamp:timestamp live_duration:int",
    "live/live_emb_64.parquet": "live_id:int embedding:embeddings",
    "live/live_emb_128_ts/live_emb_128_ts_part0.parquet": "live_stream_id:str segment_id:str feature_128:embeddings"
    " timestamp:int",
    "short_video/photo_interaction.csv": "user_id:int photo_id:int author_id:int show_cnt:int complete_play_cnt:int"
    " play_progress:float like_cnt:int cancel_like_cnt:int direct_comment_cnt:int reply_comment_cnt:int"
    " comment_stay_duration:int follow_cnt:int cancel_follow_cnt:int share_cnt:int",
    "short_video/photo_play.parquet": "user_id:int photo_id:int author_id:int enter_timestamp:timestamp"
    " leave_timestamp:timestamp enter_play_type:str is_complete_play:int like_status_type:int is_follow_before_play:int"
    " is_follow_after_play:int",
    "short_video/photo_id_set.csv": "photo_id:int",
    "short_video/photo_meta.parquet": "photo_id:int author_id:int duration:int display_type:int cover_title:str"
    " video_texts:str",
    "short_video/photo_tag.csv": "photo_id:int first_level_category_name:str second_level_category_name:str"
    " third_level_category_name:str fourth_level_category_name:str",
    "short_video/photo_emb_128.parquet": "photo_id:int feature:embeddings",
}
NEEDED = (
    *("author_profile.csv", "user_id_set.csv", "live_interaction.csv", "live_show.parquet", "live_room_meta.parquet"),
    *("photo_play.parquet", "photo_meta.parquet", "photo_tag.csv"),
)
START_MS = int(datetime(2025, 5, 4, 16, tzinfo=UTC).timestamp()) * 1000  # midnight of 5 May 2025, UTC+8
DAY_MS = 86_400_000
BEIJING = timedelta(hours=8)

_TYPES = {"int": pl.Int64, "str": pl.String, "timestamp": pl.Int64, "float": pl.Float64}
_DEFAULTS: dict[str, Any] = {"int": 0, "str": "x", "timestamp": START_MS, "float": 0.5, "embeddings": [0.0] * 128}

Row = dict[str, Any]


def wall(zone: timedelta = BEIJING, suffix: str = "") -> Callable[[int | None], str | None]:
    """Times as text on the clock of a zone: "2025-05-05 00:00:00.123"."""

    def text(ms: int | None) -> str | None:
        if ms is None:
            return None
        moment = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=ms) + zone
        return f"{moment:%Y-%m-%d %H:%M:%S}" + (f".{ms % 1000:03}" if ms % 1000 else "") + suffix

    return text


LOCAL = wall()


@dataclass(frozen=True)
class Release:
    """The rows of each file, by its name without its folder; times in ms since 1970."""

    rows: dict[str, list[Row]] = field(default_factory=dict)

    def add(self, file: str, *rows: Row) -> Release:
        return Release(self.rows | {file: [*self.rows.get(file, []), *rows]})

    def put(self, file: str, row: int, **values: Any) -> Release:
        """The same files with some values of one row changed."""
        rows = list(self.rows[file])
        rows[row] = rows[row] | values
        return Release(self.rows | {file: rows})

    def write(self, folder: Path, text: Callable[[Any], Any] = LOCAL, parquet: str = "datetime") -> Path:
        """text: how text files write times.  parquet: "ms", "s", "text", "datetime" (without a zone) or "zoned"."""
        for name, columns in CATALOGUE.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            frame = self._frame(path.name, columns, text)
            if path.suffix == ".csv":
                frame.write_csv(path)
            else:
                _in_parquet(frame, columns, parquet, text).write_parquet(path)
        return folder

    def _frame(self, file: str, columns: str, text: Callable[[Any], Any]) -> pl.DataFrame:
        kinds = dict(column.split(":") for column in columns.split())
        rows = self.rows.get(file, [])
        unknown = {name for row in rows for name in row} - set(kinds)
        assert not unknown, f"{file} has no column {unknown}"
        data = {name: _column([row.get(name, _DEFAULTS[kind]) for row in rows], kind) for name, kind in kinds.items()}
        frame = pl.DataFrame(data)
        times = [name for name, kind in kinds.items() if kind == "timestamp" and file.endswith(".csv")]
        return frame.with_columns(pl.Series(name, list(map(text, frame[name])), strict=False) for name in times)


def _column(values: list[Any], kind: str) -> pl.Series:
    """A column of the catalogue's type, or of the type of values that are not of it."""
    if kind == "embeddings":
        return pl.Series(values, dtype=pl.List(pl.Float32))
    if kind == "int" and any(isinstance(value, str) for value in values):
        return pl.Series([None if value is None else str(value) for value in values], dtype=pl.String)
    return pl.Series(values, dtype=pl.Float64 if any(isinstance(v, float) for v in values) else _TYPES[kind])


def _in_parquet(frame: pl.DataFrame, columns: str, form: str, text: Callable[[Any], Any]) -> pl.DataFrame:
    names = [column.split(":")[0] for column in columns.split() if column.endswith(":timestamp")]
    shift = BEIJING.total_seconds() * 1000 if form == "datetime" else 0
    moments = pl.from_epoch(pl.col(names) + int(shift), time_unit="ms")
    forms = {
        "ms": pl.col(names),
        "s": pl.col(names) // 1000,
        "text": pl.col(names).map_elements(text, return_dtype=pl.String),
        "datetime": moments,
        "zoned": moments.dt.replace_time_zone("UTC"),
    }
    return frame.with_columns(forms[form]) if names else frame


def entry(user: int, live: int, at: int, seconds: float = 0, author: int = 70, **values: Any) -> Row:
    """A row of live_interaction: a user enters a room `at` ms and stays."""
    end = at + int(seconds * 1000)
    day = f"{datetime.fromtimestamp(at // 1000, UTC) + BEIJING:%Y%m%d}"
    row = {"user_id": user, "live_id": live, "author_id": author, "p_date": day}
    row |= {"live_play_start_timestamp": at, "live_play_end_timestamp": end, "play_duration": end - at}
    return row | values


def show(user: int, live: int, at: int, author: int = 70) -> Row:
    return {"user_id": user, "live_id": live, "author_id": author, "show_timestamp": at}


def play(user: int, photo: int, at: int, seconds: float = 0, author: int = 71, **values: Any) -> Row:
    row = {"user_id": user, "photo_id": photo, "author_id": author, "enter_timestamp": at}
    return row | {"leave_timestamp": at + int(seconds * 1000)} | values


def random_release(seed: int, users: int = 6, days: int = 3) -> Release:
    """Times are coarse and views often empty, so that ties, slate-mates and repeats are common."""
    rng = np.random.default_rng(seed)

    def when() -> int:
        return START_MS + int(rng.integers(0, days * 24 * 12)) * 300_000

    def lasting() -> float:
        return float(rng.integers(0, 4)) * 300

    release = Release().add("user_id_set.csv", *({"user_id": u} for u in range(1, users)))
    counts = ("like_cnt", "comment_cnt", "send_gift_cnt", "follow_author_cnt")
    for _ in range(30 * users):
        user, live, photo = int(rng.integers(1, users + 1)), int(rng.integers(1, 20)), int(rng.integers(1, 40))
        acts = {name: int(rng.integers(0, 3)) for name in counts}
        where = {"live_source_category": str(rng.choice(["follow", "feed", "nearby"]))}
        release = release.add("live_interaction.csv", entry(user, live, when(), lasting(), live % 5, **acts, **where))
        release = release.add("live_show.parquet", *(show(user, live, when(), live % 5) for _ in range(2)))
        status = {"like_status_type": int(rng.integers(1, 5))}
        release = release.add("photo_play.parquet", play(user, photo, when(), lasting(), photo % 5, **status))
        release = release.add("photo_interaction.csv", {"user_id": user, "photo_id": photo, "like_cnt": 9})
    for live in range(1, 19):  # one room is in no table
        room = {"live_id": live, "author_id": live % 5, "start_timestamp": START_MS + live * 3_600_000}
        release = release.add("live_room_meta.parquet", room)
        vector = rng.normal(size=64).round(3).tolist()
        release = release.add("live_emb_64.parquet", {"live_id": live, "embedding": vector})
    for photo in range(1, 39):
        release = release.add("photo_meta.parquet", {"photo_id": photo, "duration": photo * 1000})
        release = release.add("photo_tag.csv", {"photo_id": photo, "first_level_category_name": f"tag {photo % 7}"})
    for author in range(4):
        profile = {"gender": "FMU"[author % 3], "age_segment": "24-30", "fans_user_num": f"{author}k"}
        release = release.add("author_profile.csv", {"author_id": author, **profile})
    return release


def vocabulary(notes: tuple[str, ...], name: str) -> list[str]:
    """The names of a category, as the notes of a PREPARED folder tell them."""
    start = f"{name} is the place in "
    found: list[str] = json.loads(next(note for note in notes if note.startswith(start)).removeprefix(start))
    return found


def contents(data: Prepared) -> dict[str, bytes]:
    """Every column of samples, events, users and authors."""
    parts = {"samples": data.samples, "users": data.users, "authors": data.authors}
    for domain in DOMAINS:
        parts[domain] = data.events[domain].columns | {"offsets": data.events[domain].offsets}
    return {f"{part}/{name}": column.tobytes() for part, columns in parts.items() for name, column in columns.items()}
