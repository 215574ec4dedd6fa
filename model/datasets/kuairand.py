"""KuaiRand-Pure (Gao et al., CIKM 2022, kuairand.com) as PREPARED data: the official files, unchanged.

The release has one domain.  Tab 1, the main feed, stands in for the video domain, every other tab for the live one;
a candidate's live room is the video that was shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from functools import partial
from pathlib import Path

import polars as pl

from feature_store.schema import DOMAINS, Domain
from model.datasets.buckets import Bucket, Tables
from model.datasets.csv_rows import read_csv
from model.datasets.kuairand_view import (
    GROUPS,
    KUAIRAND_SCHEMA,
    KUAIRAND_VIEW,
    ONEHOTS,
    TASKS,
    UPLOAD_TYPES,
    USER_COUNTS,
    USER_FLAGS,
    UTC_OFFSET_S,
    VIDEO_TYPES,
)
from model.datasets.prepared import Prepared, PreparedInfo
from model.datasets.source import (
    DURATION_LIMITS,
    FLAG_LIMITS,
    SMALL_LIMITS,
    TIME_LIMITS,
    Check,
    Limits,
    OnError,
    Progress,
    SourceError,
    join_repeats,
    local_day,
    narrow,
    outcome_columns,
    quiet,
)
from model.datasets.writer import write_prepared

LOG_FILES = (
    "log_standard_4_08_to_4_21_pure.csv",
    "log_standard_4_22_to_5_08_pure.csv",
    "log_random_4_22_to_5_08_pure.csv",
)
USER_FILE = "user_features_pure.csv"
VIDEO_FILE = "video_features_basic_pure.csv"

# Chosen on the validation day (docs/decisions.md).
RECOMMENDED_TRAINING = {
    "batch_size": 128,
    "learning_rate": 1e-3,
    "epochs": 4,
    "id_missing_rate": 0.5,
    "dropout": 0.3,
    "match_logit": 0.0,
}

EFFECTIVE_VIEW_MS = 3_000  # Moment&Cross calls less a short view
VIDEO_TAB = 1
MISSING_NUMBER = -124  # the release's own sentinel
_VIDEO_BITS, _TIME_BITS = (
    25,
    38,
)  # of a view id; 2^25 exceeds the 32 M videos of the largest variant, 2^38 ms is 8 years

_ACTS = {
    "click": "is_click",
    "long_view": "long_view",
    "like": "is_like",
    "comment": "is_comment",
    "follow": "is_follow",
    "share": "is_forward",
    "hate": "is_hate",
    "profile_enter": "is_profile_enter",
}
_TASK_ACTS = dict(zip(TASKS, ("click", "effective_view", "long_view", "like", "comment", "follow"), strict=True))
_KEYS = ("user_id", "video_id", "time_ms")
_IDS = (0, 2**63 - 1)
_LOG_LIMITS: Limits = {
    "user_id": _IDS,
    "video_id": (0, 2**_VIDEO_BITS - 1),
    "time_ms": TIME_LIMITS,
    "play_time_ms": DURATION_LIMITS,
    "duration_ms": DURATION_LIMITS,
    "tab": SMALL_LIMITS,
    **dict.fromkeys(_ACTS.values(), FLAG_LIMITS),
}
_GROUP_OF = {  # of user_active_degree; "UNKNOWN" is missing
    "full_active": "full",
    "high_active": "high",
    "middle_active": "mid",
    "low_active": "low",
    "single_low_active": "low",
    "day_new": "new",
    "2_14_day_new": "new",
    "30day_retention": "new",
}
_USER_NUMBERS = (*USER_FLAGS, *USER_COUNTS, *ONEHOTS)
_VIDEO_NUMBERS = ("video_duration", "music_type")


def prepare_kuairand(
    data: str | Path, out: str | Path, test_from: date, on_error: OnError = "stop", progress: Progress = quiet
) -> Prepared:
    """Turn the official files into a PREPARED folder.

    data: the folder that holds the files, or its parent (which has `data/`).  Each log file is optional as long as
    one is there.  test_from: first test day, by the `date` column; the day before it is for validation.
    Corrupt rows stop with SourceError, or are left out and counted (`on_error`); so does a missing file, by name.

    Example: ``prepare_kuairand("KuaiRand-Pure", "prepared", date(2022, 5, 7))``
    """
    folder = _folder(Path(data))
    counts: dict[str, int] = {}
    log = _read_logs(folder, on_error, counts, progress)
    users = _read_users(folder / USER_FILE, on_error, counts)
    videos = _read_videos(folder / VIDEO_FILE, on_error, counts)
    info = PreparedInfo(
        source="kuairand",
        test_from=test_from,
        tasks=TASKS,
        splits={},
        counts=counts,
        training=RECOMMENDED_TRAINING,
        group_names=GROUPS,
        notes=_notes(counts),
    )
    write_prepared(
        out,
        info=info,
        schema=KUAIRAND_SCHEMA,
        view=KUAIRAND_VIEW,
        tables={"log": log},
        build=partial(_build, videos),
        users=users,
        authors=videos.with_columns(duration="video_duration"),
        progress=progress,
    )
    return Prepared.open(out)


def _build(videos: pl.DataFrame, tables: Tables) -> Bucket:
    counts: dict[str, int] = {}
    views: dict[Domain, pl.DataFrame] = {domain: _views(tables["log"], domain, videos, counts) for domain in DOMAINS}
    columns = [field.name for field in KUAIRAND_SCHEMA.live]
    events = {domain: views[domain].select("user_id", *columns) for domain in DOMAINS}
    return Bucket(events, _samples(views["live"]), counts)


def _folder(data: Path) -> Path:
    folder = data / "data" if (data / "data").is_dir() else data
    for name in (USER_FILE, VIDEO_FILE):
        if not (folder / name).is_file():
            raise SourceError(f"{folder / name}: not there; it is one of the official KuaiRand-Pure files")
    if not any((folder / name).is_file() for name in LOG_FILES):
        raise SourceError(f"{folder}: none of the logs is there: {', '.join(LOG_FILES)}")
    return folder


def _read_logs(folder: Path, on_error: OnError, counts: dict[str, int], progress: Progress) -> pl.LazyFrame:
    logs, corrupt = [], 0
    for path in (folder / name for name in LOG_FILES if (folder / name).is_file()):
        progress(f"reading {path.name}")
        log, dropped = read_csv(path, _LOG_LIMITS, {"date": _DATE_CHECK}, on_error)
        logs.append(log.select(*narrow(_LOG_LIMITS), date=_date()))
        corrupt += dropped
    log = pl.concat(logs)
    rows, other_date = log.select(pl.len(), _is_other_date().sum().alias("other")).collect(engine="streaming").row(0)
    counts |= {"log_rows": rows + corrupt, "corrupt_log_rows": corrupt, "other_date": other_date}
    return log


def _is_other_date() -> pl.Expr:
    """`date` is not the day of the row's time: the release dates some rows around midnight by the hour after."""
    return local_day("time_ms", UTC_OFFSET_S) != pl.col("date")


def _date() -> pl.Expr:
    """`date` as a date; null where it is none."""
    return pl.col("date").str.to_date("%Y%m%d", strict=False)


_DATE_CHECK = Check(_date().is_null(), pl.format("date is {}, not YYYYMMDD", pl.col("date").fill_null("missing")))


def _read_users(path: Path, on_error: OnError, counts: dict[str, int]) -> pl.DataFrame:
    checks = {name: _number_check(name) for name in _USER_NUMBERS} | {"user_active_degree": None}
    users, counts["corrupt_user_rows"] = read_csv(path, {"user_id": _IDS}, checks, on_error)
    group = pl.col("user_active_degree").replace_strict(_GROUP_OF, default=None, return_dtype=pl.String)
    return users.select(
        pl.col("user_id").cast(pl.Int64),
        _index(group, GROUPS).alias("activity_group"),
        *(_number(name) for name in _USER_NUMBERS),
    ).collect()


def _read_videos(path: Path, on_error: OnError, counts: dict[str, int]) -> pl.DataFrame:
    """One row per video: video_id (as `live_id` too), author_id and attributes, null where missing."""
    wrong_tag = (~pl.col("tag").str.contains(r"^\d{1,4}(,\d{1,4})*$")).fill_null(False)
    checks: dict[str, Check | None] = {name: _number_check(name) for name in _VIDEO_NUMBERS}
    checks["tag"] = Check(wrong_tag, pl.format("tag is {}, not a list of integers", "tag"))
    checks |= {"upload_type": None, "video_type": None}
    limits = {"video_id": _LOG_LIMITS["video_id"], "author_id": _IDS}
    videos, counts["corrupt_video_rows"] = read_csv(path, limits, checks, on_error)
    tags = pl.col("tag").str.split(",").list
    return (
        videos.collect()
        .unique("video_id", keep="last", maintain_order=True)
        .select(
            pl.col(*limits).cast(pl.Int64),
            pl.col("video_id").cast(pl.Int64).alias("live_id"),
            tags.get(0, null_on_oob=True).cast(pl.Int64).alias("tag"),
            tags.get(1, null_on_oob=True).cast(pl.Int64).alias("second_tag"),
            _index(pl.col("upload_type"), UPLOAD_TYPES),
            _index(pl.col("video_type"), VIDEO_TYPES),
            *(_number(name) for name in _VIDEO_NUMBERS),
        )
    )


def _views(log: pl.DataFrame, domain: str, videos: pl.DataFrame, counts: dict[str, int]) -> pl.DataFrame:
    """The views of one domain: the event record's columns, the author record's, and a 0/1 column per act."""
    rows = log.filter(pl.col("tab") == VIDEO_TAB if domain == "video" else pl.col("tab") != VIDEO_TAB)
    joined = join_repeats(rows, _KEYS, (*_ACTS.values(), "play_time_ms"))
    counts[f"{domain}_repeats"] = len(rows) - len(joined)
    acts = {name: pl.col(column) for name, column in _ACTS.items()}
    acts["effective_view"] = (pl.col("play_time_ms") >= EFFECTIVE_VIEW_MS).cast(pl.Int64)
    return joined.join(videos.drop("live_id"), on="video_id", how="left", maintain_order="left").select(
        "user_id",
        _view_id().alias("view_id"),
        pl.col("time_ms").alias("event_time"),
        pl.col("play_time_ms").alias("play_time"),
        pl.col("tab").alias("page"),
        pl.col("duration_ms").alias("duration"),
        pl.col("video_id").alias("live_id"),
        pl.col("date").alias("day"),
        *("author_id", "tag", "second_tag", "upload_type", "video_type", "music_type", "video_duration"),
        *(act.alias(name) for name, act in acts.items()),
        *outcome_columns(KUAIRAND_SCHEMA, "play_time_ms", acts),
    )


def _view_id() -> pl.Expr:
    """Unique within a user's domain, and the same whichever of the logs are there: the release has no id of a view."""
    return pl.col("time_ms") % (1 << _TIME_BITS) * (1 << _VIDEO_BITS) + pl.col("video_id")


def _samples(views: pl.DataFrame) -> pl.DataFrame:
    labels = [pl.col(act).alias(task) for task, act in _TASK_ACTS.items()]
    return views.with_columns(*labels, request_time="event_time", duration="video_duration")


def _notes(counts: dict[str, int]) -> tuple[str, ...]:
    return (
        "KuaiRand-Pure (kuairand.com, CC BY-SA 4.0): tab 1 is the video domain, every other tab the live domain",
        "user attributes are one snapshot without a date: some may be later than the requests",
        f"{counts['other_date']} log rows have a `date` that is not the day of their time (UTC+8); `date` decides",
    )


def _index(column: pl.Expr, names: Sequence[str]) -> pl.Expr:
    """The place of a string in `names`; null for any other."""
    return column.replace_strict({name: i for i, name in enumerate(names)}, default=None, return_dtype=pl.Int64)


def _number(name: str) -> pl.Expr:
    """A number of the feature files, which write integers as "3" and as "3.0"."""
    number = pl.col(name).cast(pl.Float64).cast(pl.Int64)
    return pl.when(number != MISSING_NUMBER).then(number).alias(name)


def _number_check(name: str) -> Check:
    number = pl.col(name).cast(pl.Float64, strict=False)
    sound = number.is_between(MISSING_NUMBER, DURATION_LIMITS[1]).fill_null(pl.col(name).is_null())
    return Check(~sound, pl.format(f"{name} is {{}}, not a number", pl.col(name)))
