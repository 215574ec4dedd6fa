"""Logs of a platform that is not there, in the project's own Parquet format (docs/data.md).

Two domains share users, authors and interests; nine views in ten are of videos (paper, Figure 1b); acts are as sparse
as Figure 1a shows.  What a user does depends on slowly drifting interests, on favourite authors, and on bursts: for
some hours a user has a passion for one tag, in both domains, which shows in rare strong acts more than in exposure.

Letters: U users, V views.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from feature_store.schema import DOMAINS, Domain, default_schema
from model.datasets.outcomes import PAGE_EFFECT, Odds, acts, play_times
from model.datasets.prepared import whole_folder
from model.datasets.simulated import FORMAT_VERSION, META_FILE
from model.datasets.source import Progress, local_midnight, quiet
from model.datasets.world import GROUPS, VIEWS_PER_DAY, World

UTC_OFFSET_S = 8 * 3600
FIRST_DAY = date(2025, 1, 1)
FIRST_AUTHOR_ID = 100_001

LIVE_SHARE = 0.1  # of all views (paper, Figure 1b)
BEHAVIOURS = default_schema().behaviours
PAGE_SHARES: dict[Domain, tuple[float, ...]] = {"video": (0.70, 0.20, 0.07, 0.03), "live": (0.60, 0.25, 0.10, 0.05)}
SESSION_HOURS = ((7.0, 11.0), (12.0, 17.0), (18.5, 22.5))  # in which the day's sessions begin
SESSION_SHARES = (0.20, 0.25, 0.55)
EXPOSURE = {"interest": 0.25, "burst": 0.08, "favourite": 0.06}  # shares of views; the rest goes by popularity
GAP_MS = 1_500  # between views of a session, on average

_TYPES = {"user_id": pa.int64(), "author_id": pa.int64(), "live_id": pa.int64(), "view_id": pa.int64()}
_TYPES |= {"event_time": pa.int64(), "play_time": pa.int32(), "activity_group": pa.int8()}
_TYPES |= dict.fromkeys(("page", "tag", "cluster"), pa.int16()) | dict.fromkeys(BEHAVIOURS, pa.int8())
_SHARED = ("user_id", "author_id", "view_id", "event_time", "play_time", "page", "tag", *BEHAVIOURS)
_COLUMNS: dict[str, tuple[str, ...]] = {"video": _SHARED, "live": (*_SHARED, "live_id", "cluster")}


class Simulation(BaseModel):
    """meta.json: how the logs came to be, and what is in them."""

    format_version: int = FORMAT_VERSION
    source: str = "simulated"
    seed: int
    users: int
    authors: int
    first_day: date
    days: int
    utc_offset_s: int = UTC_OFFSET_S
    group_names: tuple[str, ...] = GROUPS
    views: dict[str, int] = {}
    rates: dict[str, dict[str, float]] = {}  # measured

    @property
    def last_day(self) -> date:
        """The day to test on."""
        return self.first_day + timedelta(days=self.days - 1)


@dataclass
class _Tally:
    views: int = 0
    acts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(BEHAVIOURS, 0))

    def add(self, columns: dict[str, np.ndarray]) -> None:
        self.views += len(columns["user_id"])
        for name in BEHAVIOURS:
            self.acts[name] += int(columns[name].sum())

    def rates(self) -> dict[str, float]:
        return {name: count / max(self.views, 1) for name, count in self.acts.items()}


def simulate(
    out: str | Path,
    users: int = 3_000,
    days: int = 8,
    seed: int = 0,
    authors: int | None = None,
    first_day: date = FIRST_DAY,
    progress: Progress = quiet,
) -> Simulation:
    """Write video_events, live_events, users and authors (.parquet) and meta.json into `out`, whole or not at all.

    authors: two for every three users, at least 100, unless given.  The same arguments write the same
    contents, and more days begin with the same ones.  A user has 52 views a day on average.
    ValueError when there is no user or no day.

    Example: ``simulate("logs", users=3000, days=8, seed=1)``
    """
    if users < 1 or not 1 <= days <= 1_000 or (authors is not None and authors < 100):
        raise ValueError("at least one user, 1 to 1000 days, and at least 100 authors")
    authors = max(100, users * 2 // 3) if authors is None else authors
    info = Simulation(seed=seed, users=users, authors=authors, first_day=first_day, days=days)
    with whole_folder(Path(out), marker=META_FILE) as folder:
        world = World.create(users, authors, np.random.default_rng([seed, 0]))
        tallies = _write_days(folder, world, info, progress)
        people = {"user_id": np.arange(1, users + 1), "activity_group": world.group}
        pq.write_table(_table(people), folder / "users.parquet")
        info.views = {domain: tally.views for domain, tally in tallies.items()}
        info.rates = {domain: tally.rates() for domain, tally in tallies.items()}
        (folder / META_FILE).write_text(info.model_dump_json(indent=1) + "\n")
    return info


def _write_days(folder: Path, world: World, info: Simulation, progress: Progress) -> dict[Domain, _Tally]:
    files = {domain: folder / f"{domain}_events.parquet" for domain in DOMAINS}
    writers = {domain: pq.ParquetWriter(files[domain], _arrow_schema(_COLUMNS[domain])) for domain in DOMAINS}
    rooms = pq.ParquetWriter(folder / "authors.parquet", _arrow_schema(("author_id", "live_id", "tag", "cluster")))
    tallies: dict[Domain, _Tally] = {domain: _Tally() for domain in DOMAINS}
    odds: Odds = {}
    for day in range(info.days):
        rng = np.random.default_rng([info.seed, day + 1])
        world.next_day(day, rng)
        views = _day(world, day, info, odds, rng)
        views["view_id"] = np.arange(1, len(views["user_id"]) + 1) + sum(t.views for t in tallies.values())
        for domain in DOMAINS:
            mine = {name: values[views["live"] == (domain == "live")] for name, values in views.items()}
            tallies[domain].add(mine)
            writers[domain].write_table(_table({name: mine[name] for name in _COLUMNS[domain]}))
        rooms.write_table(_table(_rooms(world, day)))
        progress(f"day {day + 1} of {info.days}: {len(views['user_id']):,} views")
    for writer in (*writers.values(), rooms):
        writer.close()
    return tallies


def _day(world: World, day: int, info: Simulation, odds: Odds, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The views of a day in order of time, by column, [V] each; `live` says which domain."""
    user, session = _sessions(world, rng)
    first, last = np.array(SESSION_HOURS).T
    begin = rng.uniform(first, last, (len(world.group), len(SESSION_HOURS)))  # [U, 3]
    hour = begin[user, session]
    live = rng.random(len(user)) < LIVE_SHARE
    views = {"user": user, "live": live, "hour": hour, "time": 24.0 * day + hour}
    views["author"] = _show(world, views, rng)
    views["tag"] = np.where(live, world.room_tag[views["author"]], world.content_tags(views["author"], rng))
    pages = [rng.choice(len(PAGE_EFFECT), len(user), p=PAGE_SHARES[domain]) for domain in DOMAINS]
    views["page"] = np.where(live, pages[1], pages[0])
    views |= acts(world, views, odds, rng)
    views["play_time"] = play_times(views, rng)
    start_ms = hour * 3_600_000 + _elapsed_ms(user * len(SESSION_HOURS) + session, views["play_time"], rng)
    views["event_time"] = local_midnight(info.first_day, info.utc_offset_s) + 86_400_000 * day + start_ms
    views["user_id"] = user + 1
    views["author_id"] = views["author"] + FIRST_AUTHOR_ID
    views["live_id"] = _live_ids(world, day)[views["author"]]
    views["cluster"] = world.cluster[views["author"]]
    order = np.argsort(views["event_time"], kind="stable")
    order = order[start_ms[order] < 86_400_000]  # a session ends with its day
    return {name: values[order] for name, values in views.items()}


def _sessions(world: World, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """User and session (0, 1, 2) of each view of a day, in order of both.  [V], [V]"""
    counts = rng.poisson(np.array(VIEWS_PER_DAY)[world.group])  # [U]
    user = np.repeat(np.arange(len(counts)), counts)
    session = rng.choice(len(SESSION_SHARES), len(user), p=SESSION_SHARES)
    order = np.lexsort((session, user))
    return user, session[order]


def _show(world: World, views: dict[str, np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Whom each view shows: by interest, burst or favourite for some, by popularity for the rest.  [V]"""
    user = views["user"]
    why = rng.choice(4, len(user), p=[*EXPOSURE.values(), 1 - sum(EXPOSURE.values())])
    tags = np.full(len(user), -1)
    by_interest = np.flatnonzero(why == 0)
    tags[by_interest] = world.wanted_tags(user[by_interest], rng)
    tags = np.where(why == 1, world.burst_tags(user, views["time"]), tags)
    picked = [world.pick_authors(domain, tags, rng) for domain in DOMAINS]
    favourite = world.favourites[user, rng.integers(0, world.favourites.shape[1], len(user))]
    return np.where(why == 2, favourite, np.where(views["live"], picked[1], picked[0]))


def _elapsed_ms(segment: np.ndarray, play_time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """When each view begins, ms after its session (views of a `segment` are neighbours).  [V]"""
    taken = play_time + 300 + rng.exponential(GAP_MS, len(segment))
    before = np.cumsum(taken) - taken
    first = np.flatnonzero(np.diff(segment, prepend=-1))
    return before - np.repeat(before[first], np.diff(first, append=len(segment)))


def _live_ids(world: World, day: int) -> np.ndarray:
    """Every author has one live room a day.  [A]"""
    return 1 + day * len(world.author_tag) + np.arange(len(world.author_tag))


def _rooms(world: World, day: int) -> dict[str, np.ndarray]:
    authors = np.arange(len(world.author_tag)) + FIRST_AUTHOR_ID
    return {"author_id": authors, "live_id": _live_ids(world, day), "tag": world.room_tag, "cluster": world.cluster}


def _arrow_schema(names: tuple[str, ...]) -> pa.Schema:
    return pa.schema([(name, _TYPES[name]) for name in names])


def _table(columns: dict[str, np.ndarray]) -> pa.Table:
    arrays = [pa.array(values.astype(_TYPES[name].to_pandas_dtype())) for name, values in columns.items()]
    return pa.table(arrays, schema=_arrow_schema(tuple(columns)))
