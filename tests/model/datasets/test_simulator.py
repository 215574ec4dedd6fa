"""The simulated platform: the same seed, the same logs; rates, shares and groups as documented; time makes sense."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from feature_store.schema import default_schema
from model.datasets.outcomes import LEVELS_MS, RATES
from model.datasets.prepared import PreparedError
from model.datasets.simulator import Simulation, simulate
from model.datasets.world import GROUPS, VIEWS_PER_DAY

ACTS = default_schema().behaviours
FILES = ("video_events", "live_events", "users", "authors")


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("simulated") / "logs"
    simulate(folder, users=1_000, days=4, seed=3)
    return folder


def read(folder: Path, name: str) -> pl.DataFrame:
    return pl.read_parquet(folder / f"{name}.parquet")


def test_same_arguments_same_contents(tmp_path: Path) -> None:
    first = simulate(tmp_path / "a", users=60, days=2, seed=7)
    again = simulate(tmp_path / "b", users=60, days=2, seed=7)
    other = simulate(tmp_path / "c", users=60, days=2, seed=8)
    assert first == again != other
    for name in FILES:
        assert read(tmp_path / "a", name).equals(read(tmp_path / "b", name)), name
    assert not read(tmp_path / "a", "live_events").equals(read(tmp_path / "c", "live_events"))


def test_more_days_begin_with_the_same_ones(tmp_path: Path) -> None:
    simulate(tmp_path / "short", users=60, days=2, seed=7)
    simulate(tmp_path / "long", users=60, days=3, seed=7)
    for name in ("video_events", "live_events", "authors"):
        short, long = read(tmp_path / "short", name), read(tmp_path / "long", name)
        assert long[: len(short)].equals(short), name


def test_shares_of_views_and_acts(logs: Path) -> None:
    frames = {domain: read(logs, f"{domain}_events") for domain in ("video", "live")}
    assert len(frames["live"]) / sum(map(len, frames.values())) == pytest.approx(0.1, abs=0.005)
    for place, domain in enumerate(("video", "live")):
        for act in ACTS:
            expected = RATES[act][place]
            error = 4 * (expected / len(frames[domain])) ** 0.5 + 0.15 * expected
            assert frames[domain][act].mean() == pytest.approx(expected, abs=error), (domain, act)


def test_acts_and_play_times_agree(logs: Path) -> None:
    for domain, (effective, long) in LEVELS_MS.items():
        frame = read(logs, f"{domain}_events")
        assert ((frame["play_time"] >= effective) == (frame["effective_view"] == 1)).all()
        assert ((frame["play_time"] >= long) == (frame["long_view"] == 1)).all()
        assert (frame["effective_view"] <= frame["click"]).all()
        for act in ("like", "comment", "gift", "follow", "share"):
            assert (frame[act] <= frame["effective_view"]).all()


def test_groups_differ_in_views(logs: Path) -> None:
    users = read(logs, "users")
    views = pl.concat([read(logs, f"{domain}_events").select("user_id") for domain in ("video", "live")])
    counts = views.join(users, on="user_id").group_by("activity_group").len().sort("activity_group")
    people = users.group_by("activity_group").len().sort("activity_group")
    per_day = (counts["len"] / people["len"] / 4).to_numpy()
    assert per_day == pytest.approx(np.array(VIEWS_PER_DAY), rel=0.1)


def test_views_of_a_user_follow_each_other_within_the_days(logs: Path) -> None:
    info = Simulation.model_validate_json((logs / "meta.json").read_text())
    both = [
        read(logs, f"{domain}_events").select("user_id", "view_id", "event_time", "play_time")
        for domain in ("video", "live")
    ]
    views = pl.concat(both).sort("user_id", "event_time")
    assert views["view_id"].is_unique().all()
    ends = pl.col("event_time") + pl.col("play_time")
    overlaps = views.select((ends > pl.col("event_time").shift(-1)).over("user_id").fill_null(False)).to_series()
    assert overlaps.mean() < 0.002
    days = (views["event_time"] + info.utc_offset_s * 1000) // 86_400_000
    assert days.n_unique() == 4
    assert info.views == {"video": len(both[0]), "live": len(both[1])}
    assert info.group_names == GROUPS


def test_live_views_agree_with_the_authors_file(logs: Path) -> None:
    rooms, live = read(logs, "authors"), read(logs, "live_events")
    joined = live.join(rooms, on=["author_id", "live_id"], how="left", suffix="_room")
    assert (joined["tag"] == joined["tag_room"]).all()
    assert (joined["cluster"] == joined["cluster_room"]).all()
    assert rooms.select("author_id", "live_id").is_unique().all()


def test_a_like_of_a_tag_foretells_the_next_one(logs: Path) -> None:
    """Bursts are shared by the domains: a like in the video domain raises the odds of one in the live domain."""
    liked = read(logs, "video_events").filter(pl.col("like") == 1).select("user_id", "tag", "event_time")
    live = read(logs, "live_events").select("user_id", "tag", "event_time", "view_id", "like")
    pairs = live.join(liked, on=["user_id", "tag"], suffix="_liked")
    lag_hours = (pl.col("event_time") - pl.col("event_time_liked")) / 3_600_000
    after = pairs.filter(lag_hours.is_between(0, 12)).select("view_id").unique()
    rate = live.join(after, on="view_id", how="semi")["like"].mean()
    assert rate > 3 * live["like"].mean()


def test_meta_says_how_the_logs_came_to_be(logs: Path) -> None:
    meta = json.loads((logs / "meta.json").read_text())
    assert (meta["format_version"], meta["seed"], meta["users"], meta["days"]) == (1, 3, 1_000, 4)


def test_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(PreparedError, match="holds something else"):
        simulate(tmp_path, users=10, days=1)
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_a_simulation_replaces_a_simulation(tmp_path: Path) -> None:
    simulate(tmp_path / "logs", users=10, days=1)
    assert simulate(tmp_path / "logs", users=20, days=1).users == 20
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]


@pytest.mark.parametrize("wrong", [{"users": 0}, {"days": 0}, {"authors": 5}])
def test_impossible_sizes_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least one user"):
        simulate(tmp_path / "logs", **wrong)  # type: ignore[arg-type]
