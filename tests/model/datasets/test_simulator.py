"""The simulated platform: the same seed, the same logs; rates, shares and groups as documented; the truth is true."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from feature_store.schema import Domain, default_schema
from model.datasets import blocks
from model.datasets.logs import TASK_ACTS
from model.datasets.outcomes import LEVELS_MS, RATES, WATCHING
from model.datasets.prepared import PreparedError
from model.datasets.simulator import Simulation, simulate
from model.datasets.world import COMMUNITIES, GROUPS, VIEWS_PER_DAY, Authors, Planted, community_of

ACTS = default_schema().behaviours
FILES = ("video_events", "live_events", "live_truth", "users", "authors")


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


def test_blocks_of_users_do_not_know_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first users of many are those of few, so memory need not grow with their number."""
    monkeypatch.setattr(blocks, "BLOCK_VIEWS", 52 * 2 * 40)
    simulate(tmp_path / "few", users=40, days=2, seed=7, authors=300)
    simulate(tmp_path / "many", users=100, days=2, seed=7, authors=300)
    for name in ("video_events", "live_events", "live_truth"):
        few, many = read(tmp_path / "few", name), read(tmp_path / "many", name)
        assert many.filter(pl.col("user_id") <= 40).equals(few), name
        assert many["user_id"].n_unique() > 40


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
    assert all(frame.select("user_id", "view_id").is_unique().all() for frame in both)
    views = pl.concat(both).sort("user_id", "event_time")
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


def test_rooms_are_ranked_in_slates(logs: Path) -> None:
    live = read(logs, "live_events")
    slates = live.group_by("user_id", "request_time").agg(pl.len(), pl.col("page").n_unique().alias("pages"))
    assert (slates["len"] == blocks.SLATE).all()
    assert (slates["pages"] == 1).all()
    assert (live["event_time"] >= live["request_time"]).all()


def test_the_truth_is_the_probability_of_the_labels(logs: Path) -> None:
    """In every tenth of the samples by probability, and by author quality, labels are as frequent as it says."""
    live = read(logs, "live_events").join(read(logs, "live_truth"), on=["user_id", "view_id"], how="left")
    for task, act in TASK_ACTS.items():
        bins = live.sort(task).with_row_index().with_columns(bin=pl.col("index") * 10 // len(live))
        for _, rows in bins.group_by("bin"):
            expected, error = rows[task].mean(), (rows[task] * (1 - rows[task])).sum() ** 0.5 / len(rows)
            assert rows[act].mean() == pytest.approx(expected, abs=4.5 * error), (task, act)


def truth_spread(folder: Path) -> dict[str, float]:
    """How far the log odds of each task spread."""
    truth = read(folder, "live_truth")
    return {task: float((truth[task] / (1 - truth[task])).log().std()) for task in TASK_ACTS}  # type: ignore[arg-type]


def test_the_null_plants_nothing(tmp_path: Path) -> None:
    simulate(tmp_path / "null", users=300, days=3, planted=Planted.nothing())
    assert max(truth_spread(tmp_path / "null").values()) < 1e-6
    busy = read(tmp_path / "null", "video_events").filter(pl.col("user_id").count().over("user_id") > 200)
    shares = busy.group_by("user_id", "tag").len().with_columns(pl.col("len") / pl.col("len").sum().over("user_id"))
    assert shares["len"].max() < 0.2  # no tag is shown to anyone much more than another, of 16
    assert json.loads((tmp_path / "null" / "meta.json").read_text())["simulation"]["null"]


@pytest.mark.parametrize("name", [n for n in Planted.names() if n not in ("drift", "exposure", "sparsity")])
def test_every_structure_can_be_left_out(tmp_path: Path, name: str) -> None:
    """Alone it spreads the truth, which nothing planted does not (groups: by more than interests do alone)."""
    alone = replace(Planted.nothing(), **{name: True, **({"interests": True} if name in ("groups", "memory") else {})})
    simulate(tmp_path / "alone", users=200, days=3, planted=alone)
    assert max(truth_spread(tmp_path / "alone").values()) > 0.05
    assert not getattr(Planted().without(name), name)
    with pytest.raises(ValueError, match="no such structure"):
        Planted().without("telepathy")


def test_exposure_and_sparsity_are_switches(tmp_path: Path) -> None:
    planted = Planted().without("exposure", "sparsity")
    info = simulate(tmp_path / "dense", users=400, days=3, planted=planted)
    assert info.views["live"] / sum(info.views.values()) == pytest.approx(0.5, abs=0.02)
    assert info.rates["live"]["like"] == pytest.approx(5 * RATES["like"][1], rel=0.25)


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


@pytest.mark.parametrize("wrong", [{"users": 0}, {"days": 0}, {"authors": 0}])
def test_impossible_sizes_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least one user"):
        simulate(tmp_path / "logs", **wrong)  # type: ignore[arg-type]


def first_block(users: int, planted: Planted) -> blocks.Block:
    authors = Authors.create(users // 10, 4, seed=3)
    info = Simulation(seed=3, users=users, authors=authors.count, first_day=blocks.FIRST_DAY, days=4)
    return blocks.Block(blocks.Platform(info, authors, planted), 0)


@pytest.mark.parametrize("domain", ["video", "live"])
def test_times_swing_slowly_and_passions_stand_out(domain: Domain) -> None:
    """Of the time watched, most is the swing; without it, a passion is seen at once."""
    block = first_block(300, Planted())
    frame = block.tables()[f"{domain}_events"]
    told = np.flatnonzero(frame["click"] if domain == "video" else ~frame["effective_view"])
    law, logs = WATCHING[domain], np.log(frame["play_time"][told])
    assert np.corrcoef(logs, frame["swing"][told])[0, 1] > 0.8
    if domain == "live":
        passion = frame["live_passion"][told]
        off = logs - law.swing * frame["swing"][told]
        assert off[passion].mean() - off[~passion].mean() == pytest.approx(law.passion, abs=0.1)
        assert abs(logs[passion].mean() - logs[~passion].mean()) < logs.std()


def test_users_meet_their_community_in_both_domains() -> None:
    block = first_block(300, Planted())
    for domain, frame in (("video", block.videos()[0]), ("live", block.rooms())):
        planted = blocks.VIDEO_COMMUNITY if domain == "video" else blocks.LIVE_COMMUNITY
        own = community_of(frame["author"]) == block.people.community[frame["user"]]
        assert own.mean() == pytest.approx(planted + (1 - planted) / COMMUNITIES, abs=0.02)


def test_what_is_remembered_is_no_trait_of_the_room() -> None:
    """So no model finds it in the candidate and one history alone: interest and memory hardly agree."""
    block = first_block(300, Planted())
    block.videos()
    rooms = block.rooms()
    assert 0.1 < rooms["memory"].std() < 0.4
    assert np.corrcoef(rooms["memory"], rooms["interest"])[0, 1] < 0.5
