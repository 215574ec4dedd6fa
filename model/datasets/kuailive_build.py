"""What the rows of KuaiLive-M3 become, users by users: events of both domains, and samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from model.datasets.buckets import Bucket, Tables
from model.datasets.kuailive_view import LIVE_ACTS, TASKS, UTC_OFFSET_S, VIEWED_BITS, kuailive_schema
from model.datasets.source import join_repeats, local_day, outcome_columns

EFFECTIVE_VIEW_MS = 3_000  # Moment&Cross calls less a short view
LONG_LIVE_VIEW_MS = 60_000  # no level is published; the simulator's
LONG_VIDEO_VIEW_MS = 18_000  # KuaiRand's: 18 s, or the whole of a shorter video
ENTRY_EARLY_MS = 5_000  # an entry may be logged this long before the impression that led to it
ENTRY_LATE_MS = 30 * 60_000  # and follows it at most this long after
NEW_LIKE = 1  # `like_status_type`: the first of the published states, "new like"

_TIME_BITS = 38  # of a view id: 8 years
_TASK_ACTS = dict(zip(TASKS, ("click", "effective_view", "long_view", "like", "comment", "gift"), strict=True))
_LIVE_KEYS = ("user_id", "live_id", "event_time")
_VIDEO_KEYS = ("user_id", "photo_id", "event_time")


@dataclass(frozen=True)
class Attributes:
    """What is known of rooms, authors and videos; each once."""

    rooms: pl.DataFrame  # live_id, start_hour, and the codes of the embedding
    authors: pl.DataFrame  # author_id, gender, age, fans
    videos: pl.DataFrame  # photo_id, tag, duration


def build(tables: Tables, attributes: Attributes) -> Bucket:
    """The events and samples of one bucket of users, from their `entries`, `shows` and `plays`."""
    entries, shows = (_once(tables[name], _LIVE_KEYS) for name in ("entries", "shows"))
    plays = _once(tables["plays"], _VIDEO_KEYS)
    led = impressions(entries, shows)
    shown = led.select("user_id", "live_id", event_time="shown").drop_nulls()
    passed = shows.join(shown, on=_LIVE_KEYS, how="anti")
    live, video = _live_views(entries, attributes), _video_views(plays, attributes)
    counts = {
        "live_repeats": len(tables["entries"]) - len(entries),
        "show_repeats": len(tables["shows"]) - len(shows),
        "video_repeats": len(tables["plays"]) - len(plays),
        "entered_shows": len(shows) - len(passed),
        "passed_shows": len(passed),
        "unshown_entries": led["shown"].null_count(),
        **{
            f"photo_like_status_{state}": n
            for state, n in plays["like_status"].value_counts().sort("like_status").rows()
        },
    }
    schema = kuailive_schema()
    return Bucket(
        events={
            "video": video.select("user_id", *(field.name for field in schema.video)),
            "live": live.select("user_id", *(field.name for field in schema.live)),
        },
        samples=_samples(_asked(live.join(led, on=_LIVE_KEYS, how="left")), passed, attributes),
        counts=counts,
    )


def _once(rows: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    """A row per view; repeats join by the maximum of everything."""
    return join_repeats(rows, keys, [name for name in rows.columns if name not in keys])


def impressions(entries: pl.DataFrame, shows: pl.DataFrame) -> pl.DataFrame:
    """The entries (user_id, live_id, event_time) and when the impression was that led to each (shown, or null).

    It is the latest impression of the room to the user from 30 minutes before the entry to 5 seconds after it.
    """
    until = entries.select(*_LIVE_KEYS, until=pl.col("event_time") + ENTRY_EARLY_MS).sort("until")
    shown = shows.select("user_id", "live_id", shown="event_time").sort("shown")
    led = until.join_asof(
        shown,
        left_on="until",
        right_on="shown",
        by=["user_id", "live_id"],
        strategy="backward",
        tolerance=ENTRY_EARLY_MS + ENTRY_LATE_MS,
        check_sortedness=False,  # it cannot be checked within groups
    )
    return led.select(*_LIVE_KEYS, "shown")


def _asked(entries: pl.DataFrame) -> pl.DataFrame:
    """Live views with `shown` -> one row per impression, its `request_time` and the acts of all that it led to.

    The request is that of the impression, as it is for rooms passed by: an entry's own start would tell that it was
    entered, since the user had left the rooms entered before it.  An entry that is logged before its impression was
    asked for no later than it began.  Entries without an impression have no other time than their own.
    """
    asked = entries.with_columns(shown=pl.coalesce("shown", "event_time"))
    return asked.group_by("user_id", "author_id", "live_id", "shown", maintain_order=True).agg(
        request_time=pl.min_horizontal(pl.col("event_time").min(), pl.col("shown").first()),
        **{act: pl.col(act).max() for act in _TASK_ACTS.values()},
    )


def _live_views(entries: pl.DataFrame, attributes: Attributes) -> pl.DataFrame:
    """The event record's columns, live_id, and a 0/1 column per act.  Known when the user left the room."""
    acts = {name: pl.col(name) for name in LIVE_ACTS}
    acts |= {"click": pl.lit(1, pl.Int8), **_view_acts(pl.lit(LONG_LIVE_VIEW_MS))}
    views = attach(entries, attributes.authors, "author_id")
    views = views.with_columns(_view_id("live_id"), span=pl.col("ended") - pl.col("event_time"))
    return views.with_columns(
        *outcome_columns(kuailive_schema(), "span", acts), *(act.alias(name) for name, act in acts.items())
    )


def _video_views(plays: pl.DataFrame, attributes: Attributes) -> pl.DataFrame:
    """The event record's columns.  Known when the user left the video."""
    views = attach(attach(plays, attributes.videos, "photo_id"), attributes.authors, "author_id")
    views = views.with_columns(_view_id("photo_id"), play_time=pl.col("ended") - pl.col("event_time"))
    acts = {name: pl.col(name) for name in ("follow", "complete_play")}
    acts |= {"like": pl.col("like_status") == NEW_LIKE}
    length = pl.when(pl.col("duration") > 0).then("duration")
    acts |= _view_acts(pl.min_horizontal(length, pl.lit(LONG_VIDEO_VIEW_MS)))
    return views.with_columns(*outcome_columns(kuailive_schema(), "play_time", acts))


def _view_acts(long_view_ms: pl.Expr) -> dict[str, pl.Expr]:
    levels = {"effective_view": pl.lit(EFFECTIVE_VIEW_MS), "long_view": long_view_ms}
    return {name: (pl.col("play_time") >= level).cast(pl.Int8) for name, level in levels.items()}


def _view_id(name: str) -> pl.Expr:
    """Unique within a user's domain: the release has no id of a view."""
    time = pl.col("event_time") % (1 << _TIME_BITS)
    return (time * (1 << VIEWED_BITS) + pl.col(name)).alias("view_id")


def _samples(asked: pl.DataFrame, passed: pl.DataFrame, attributes: Attributes) -> pl.DataFrame:
    """Every impression that led to entries, every entry without one, and every impression that led to none."""
    keys = ("user_id", "author_id", "live_id", "request_time")
    labels = [pl.col(act).cast(pl.Int8).alias(task) for task, act in _TASK_ACTS.items()]
    nothing = [pl.lit(0, pl.Int8).alias(task) for task in TASKS]
    passed = passed.rename({"event_time": "request_time"})
    samples = pl.concat([asked.select(*keys, *labels), passed.select(*keys, *nothing)], how="vertical_relaxed")
    samples = samples.with_columns(day=local_day("request_time", UTC_OFFSET_S), page=pl.lit(None, pl.Int16))
    return attach(attach(samples, attributes.authors, "author_id"), attributes.rooms, "live_id")


def attach(rows: pl.DataFrame, attributes: pl.DataFrame, key: str) -> pl.DataFrame:
    """Attributes joined by `key`, null where there are none.  Only those that `rows` need are looked at twice."""
    needed = attributes.join(rows.select(key).unique(), on=key, how="semi")
    return rows.join(needed, on=key, how="left", maintain_order="left")
