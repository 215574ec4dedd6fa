"""KuaiLive-M3 in the catalogue's format, on files made here: which samples, which events, what of them."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from kuailive_files import DAY_MS, START_MS, Release, contents, entry, play, random_release, show, vocabulary

from feature_store.schema import DOMAINS, MISSING, Domain, widen
from model.datasets.kuailive import prepare_kuailive
from model.datasets.kuailive_build import impressions
from model.datasets.kuailive_view import kuailive_schema, kuailive_view
from model.datasets.prepared import Prepared
from model.metrics import auc

TEST_FROM = date(2025, 5, 7)
ENTRIES, SHOWS, PLAYS = "live_interaction.csv", "live_show.parquet", "photo_play.parquet"
ROOMS = "live_room_meta.parquet"
NOON = START_MS + DAY_MS // 2
MINUTE = 60_000
BASE = (
    Release()
    .add("user_id_set.csv", {"user_id": 1}, {"user_id": 9})
    .add("author_profile.csv", {"author_id": 70, "gender": "F", "age_segment": "31-40", "fans_user_num": "1-5k"})
    .add("author_profile.csv", {"author_id": 71, "gender": "U", "age_segment": "unknown", "fans_user_num": "0-1k"})
    .add(ROOMS, {"live_id": 10, "author_id": 70, "start_timestamp": NOON + 1})
    .add(ROOMS, {"live_id": 10, "author_id": 70, "start_timestamp": NOON + DAY_MS // 2})
    .add("photo_meta.parquet", {"photo_id": 100, "duration": 10_000}, {"photo_id": 101, "duration": 2**40})
    .add("photo_meta.parquet", {"photo_id": 102, "duration": 0})
    .add("photo_tag.csv", {"photo_id": 100, "first_level_category_name": "song, dance"})
    .add("photo_tag.csv", {"photo_id": 102, "first_level_category_name": "cats"})
    .add("photo_tag.csv", {"photo_id": 100, "first_level_category_name": "cats"})
    .add("photo_tag.csv", *({"photo_id": 103, "first_level_category_name": name} for name in ("cats", "song, dance")))
    .add(ENTRIES, *(entry(3, 10, NOON + day * DAY_MS, 2) for day in range(3)))
)


def prepare(release: Release, folder: Path) -> Prepared:
    return prepare_kuailive(release.write(folder / "release"), folder / "out", TEST_FROM)


def labels(data: Prepared, user: int) -> dict[int, list[int]]:
    """The labels of a user's samples by request time, less NOON."""
    rows = np.flatnonzero(data.user_ids()[data.samples["user_row"]] == user)
    times = (data.samples["request_time"][rows] - NOON).tolist()
    assert len(set(times)) == len(times)
    return dict(zip(times, data.samples["labels"][rows].tolist(), strict=True))


def events(data: Prepared, domain: Domain, user: int, column: str) -> list[int]:
    """A column of a user's events, by time."""
    held = data.events[domain]
    rows = np.flatnonzero(data.user_ids()[held.user_rows()] == user)
    rows = rows[np.argsort(held.columns["event_time"][rows], kind="stable")]
    values: list[int] = widen(np.asarray(held.columns[column]))[rows].tolist()
    return values


def acts(data: Prepared, domain: Domain, user: int) -> list[set[str]]:
    bits = events(data, domain, user, "behaviours")
    return [{name for i, name in enumerate(data.schema.behaviours) if held >> i & 1} for held in bits]


@pytest.mark.parametrize("content", [False, True])
def test_the_view_fits_its_schema_and_the_papers_widths(content: bool) -> None:
    view = kuailive_view(content)
    assert (view.width("video"), view.width("live")) == (92, 64)
    assert view.tasks == ("ctr", "etr", "lvtr", "ltr", "cmtr", "gtr")
    assert view.missing_from(kuailive_schema(content)) == []
    assert ("emb_7" in view.columns("candidate")) == content


def test_entries_are_clicks_and_the_counts_are_their_acts(tmp_path: Path) -> None:
    release = BASE.add(
        ENTRIES,
        entry(1, 10, NOON, 2.999, like_cnt=3),
        entry(1, 10, NOON + 1 * MINUTE, 3, comment_cnt=1, share_cnt=1),
        entry(1, 10, NOON + 2 * MINUTE, 59.999, send_gift_cnt=2, send_gift_num=9),
        entry(1, 11, NOON + 4 * MINUTE, 60, follow_author_cnt=1, report_live_cnt=1, cancel_follow_author_cnt=1),
    )
    data = prepare(release, tmp_path)
    assert labels(data, 1) == {
        0 * MINUTE: [1, 0, 0, 1, 0, 0],
        1 * MINUTE: [1, 1, 0, 0, 1, 0],
        2 * MINUTE: [1, 1, 0, 0, 0, 1],
        4 * MINUTE: [1, 1, 1, 0, 0, 0],
    }
    assert acts(data, "live", 1) == [
        {"click", "like"},
        {"click", "effective_view", "comment", "share"},
        {"click", "effective_view", "gift"},
        {"click", "effective_view", "long_view", "follow", "report"},
    ]
    assert (
        events(data, "live", 1, "play_time") == events(data, "live", 1, "known_after") == [2_999, 3_000, 59_999, 60_000]
    )


def test_an_impression_is_a_sample_unless_it_led_to_an_entry(tmp_path: Path) -> None:
    release = BASE.add(SHOWS, show(1, 10, NOON), show(1, 11, NOON + 1), show(1, 10, NOON + 2), show(2, 10, NOON + 9))
    data = prepare(release.add(ENTRIES, entry(1, 10, NOON + 5_000, 7)), tmp_path)
    assert labels(data, 1) == {0: [0] * 6, 1: [0] * 6, 2: [1, 1, 0, 0, 0, 0]}  # of two impressions the later led
    assert labels(data, 2) == {9: [0] * 6}
    assert (data.info.counts["entered_shows"], data.info.counts["passed_shows"]) == (1, 3)
    assert events(data, "live", 1, "event_time") == [NOON + 5_000]  # an impression is no event


@pytest.mark.parametrize(
    ("gap_ms", "led"),
    [(-5_001, False), (-5_000, True), (0, True), (30 * MINUTE, True), (30 * MINUTE + 1, False)],
)
def test_the_window_of_an_entry(gap_ms: int, led: bool) -> None:
    """gap_ms: from the impression to the entry."""
    shows = pl.DataFrame({"user_id": [1, 2, 1], "live_id": [10, 10, 11], "event_time": [NOON, NOON + 1, NOON + 1]})
    entries = pl.DataFrame({"user_id": [1], "live_id": [10], "event_time": [NOON + gap_ms]})
    assert impressions(entries, shows).rows() == [(1, 10, NOON + gap_ms, NOON if led else None)]


def test_an_entry_is_asked_for_when_its_room_was_shown(tmp_path: Path) -> None:
    """As rooms that were passed are: with its own start, it alone would see what the user did in between."""
    shown = [show(1, live, NOON) for live in (10, 11, 12)]
    entered = [entry(1, 10, NOON + 2_000, 40), entry(1, 11, NOON + 50_000, 1), entry(1, 12, NOON - 3_000, 2)]
    data = prepare(BASE.add(SHOWS, *shown).add(ENTRIES, *entered), tmp_path)
    rows = np.flatnonzero(data.user_ids()[data.samples["user_row"]] == 1)
    times = dict(zip(data.samples["live_id"][rows].tolist(), (data.samples["request_time"][rows] - NOON), strict=True))
    assert times == {10: 0, 11: 0, 12: -3_000}  # the last is logged before its impression, and not in its own history
    first = data.events["live"].offsets[data.samples["user_row"][rows]]
    held = dict(zip(data.samples["live_id"][rows].tolist(), (data.samples["live_end"][rows] - first), strict=True))
    assert held == {10: 1, 11: 1, 12: 0}  # what ended before the impression: the entry that came before it


def test_entries_of_one_impression_are_one_sample(tmp_path: Path) -> None:
    entered = [entry(1, 10, NOON + 1_000, 2, like_cnt=1), entry(1, 10, NOON + 9_000, 4, comment_cnt=1)]
    data = prepare(BASE.add(SHOWS, show(1, 10, NOON)).add(ENTRIES, *entered), tmp_path)
    assert labels(data, 1) == {0: [1, 1, 0, 1, 1, 0]}
    assert events(data, "live", 1, "event_time") == [NOON + 1_000, NOON + 9_000]
    assert data.info.counts["unshown_entries"] == 3  # those of BASE


def test_outcomes_drawn_by_chance_are_not_told_by_the_history(tmp_path: Path) -> None:
    """Slates of five rooms, each entered with p = 0.3, one after another: the newest event's lag says nothing."""
    rng = np.random.default_rng(0)
    shown, entered, rooms = [], [], iter(range(100, 100_000))
    for user in range(20, 60):
        at = START_MS + int(rng.integers(0, MINUTE))
        for _ in range(30):
            clock = at + 2_000
            for live in (next(rooms) for _ in range(5)):
                shown.append(show(user, live, at))
                if rng.random() < 0.3:
                    stay = int(rng.integers(5, 60))
                    entered.append(entry(user, live, clock, stay))
                    clock += (stay + 2) * 1_000
            at += 2 * 3_600_000
    data = prepare(BASE.add(SHOWS, *shown).add(ENTRIES, *entered), tmp_path)
    samples = data.samples
    has = samples["live_end"] > data.events["live"].offsets[samples["user_row"]]
    newest = data.events["live"].known_at()[samples["live_end"][has] - 1]
    ctr = np.asarray(samples["labels"])[has, 0]
    assert len(ctr) > 5_000
    assert abs(auc(newest - samples["request_time"][has], ctr) - 0.5) < 0.02


def test_a_day_begins_at_midnight_in_beijing(tmp_path: Path) -> None:
    midnights = [START_MS + day * DAY_MS for day in (1, 2)]
    rows = [show(1, 10, at + before) for at in midnights for before in (-1, 0)]
    data = prepare(BASE.add(SHOWS, *rows), tmp_path)
    found = {split: data.samples["request_time"][data.rows(split)].tolist() for split in ("train", "valid", "test")}
    assert found == {
        "train": [NOON, midnights[0] - 1],
        "valid": [midnights[0], NOON + DAY_MS, midnights[1] - 1],
        "test": [midnights[1], NOON + 2 * DAY_MS],
    }


def test_an_entry_is_known_when_the_user_left_not_after_what_was_watched(tmp_path: Path) -> None:
    release = BASE.add(ENTRIES, entry(1, 10, NOON, 100, play_duration=40_000), entry(1, 10, NOON + 200_000))
    data = prepare(release, tmp_path)
    assert events(data, "live", 1, "known_after") == [100_000, 1]
    assert events(data, "live", 1, "play_time") == [40_000, 0]


def test_plays_are_the_video_history(tmp_path: Path) -> None:
    """A long view is of 18 s, or of the whole of a shorter video; a length of 0 tells nothing."""
    following = {"is_follow_before_play": 1, "is_follow_after_play": 1}
    release = BASE.add(
        PLAYS,
        play(1, 100, NOON, 9.999, like_status_type=1, **following),
        play(1, 100, NOON + 1 * MINUTE, 10, is_complete_play=1, is_follow_after_play=1),
        play(1, 101, NOON + 2 * MINUTE, 17.999, like_status_type=2),
        play(1, 102, NOON + 3 * MINUTE, 18, author=70),
        play(1, 102, NOON + 4 * MINUTE),
        play(1, 103, NOON + 5 * MINUTE),
    )
    data = prepare(release, tmp_path)
    assert acts(data, "video", 1) == [
        {"effective_view", "like"},
        {"effective_view", "long_view", "follow", "complete_play"},
        {"effective_view"},
        {"effective_view", "long_view"},
        set(),
        set(),
    ]
    tags = vocabulary(data.info.notes, "tag")
    assert tags == ["cats", "song, dance"]
    assert events(data, "video", 1, "tag") == [1, 1, MISSING, 0, 0, 1]
    assert events(data, "video", 1, "duration") == [10_000, 10_000, 2**31 - 1, 0, 0, MISSING]
    assert events(data, "video", 1, "known_after") == [9_999, 10_000, 17_999, 18_000, 1, 1]
    assert events(data, "video", 1, "age") == [MISSING, MISSING, MISSING, 0, MISSING, MISSING]
    counts = data.info.counts
    assert {status: counts[f"photo_like_status_{status}"] for status in range(3)} == {0: 4, 1: 1, 2: 1}


def test_attributes_of_a_candidate_and_what_is_missing(tmp_path: Path) -> None:
    release = BASE.add(SHOWS, show(1, 10, NOON, 70), show(1, 12, NOON + 1, 71), show(1, 13, NOON + 2, 72))
    data = prepare(release, tmp_path)
    rows = np.flatnonzero(data.user_ids()[data.samples["user_row"]] == 1)
    candidate = {
        name: widen(np.asarray(data.samples[name]))[rows].tolist() for name in data.samples if name != "labels"
    }
    assert candidate["author_id"] == [70, 71, 72]
    assert candidate["live_id"] == [10, 12, 13]
    assert candidate["start_hour"] == [12, MISSING, MISSING]  # of the first of the room's days, in Beijing
    assert candidate["gender"] == candidate["age"] == [0, MISSING, MISSING]
    assert candidate["fans"] == [1, 0, MISSING]
    assert vocabulary(data.info.notes, "fans") == ["0-1k", "1-5k"]
    assert vocabulary(data.info.notes, "gender") == ["F"]
    assert {name: column.tolist() for name, column in data.authors.items()} == {
        "author_id": [70],
        "live_id": [10],
        "start_hour": [12],
        "gender": [0],
        "age": [0],
        "fans": [1],
    }
    assert data.user_ids().tolist() == [1, 3, 9]


def test_pages_are_of_the_history_and_never_of_a_request(tmp_path: Path) -> None:
    """Impressions have no page: one that only entries had would tell which were entered."""
    pages = ({"live_source_category": page} for page in ("nearby", "follow", None))
    rows = [entry(1, 10, NOON + i, is_follow_enter=i % 2, **page) for i, page in enumerate(pages)]
    data = prepare(BASE.add(ENTRIES, *rows).add(SHOWS, show(1, 11, NOON)), tmp_path)
    assert vocabulary(data.info.notes, "page") == ["follow", "nearby", "x"]
    assert events(data, "live", 1, "page") == [1, 0, MISSING]
    assert events(data, "live", 1, "following") == [0, 1, 0]
    assert (widen(np.asarray(data.samples["page"]).astype("i4")) == MISSING).all()
    assert "page" not in data.view.columns("context")


def test_repeats_are_one_view_whatever_their_order(tmp_path: Path) -> None:
    repeats = [entry(1, 10, NOON, 9, like_cnt=1), entry(1, 10, NOON, 4, comment_cnt=1)]
    shown, played = [show(1, 11, NOON)] * 2, [play(1, 100, NOON, 3), play(1, 100, NOON, 8)]
    release = BASE.add(ENTRIES, *repeats).add(SHOWS, *shown).add(PLAYS, *played)
    data = prepare(release, tmp_path / "a")
    assert [data.info.counts[f"{name}_repeats"] for name in ("live", "show", "video")] == [1, 1, 1]
    assert events(data, "live", 1, "play_time") == [9_000]
    assert acts(data, "live", 1) == [{"click", "effective_view", "like", "comment"}]
    assert events(data, "video", 1, "play_time") == [8_000]
    turned = BASE.add(ENTRIES, *repeats[::-1]).add(SHOWS, *shown).add(PLAYS, *played[::-1])
    assert contents(data) == contents(prepare(turned, tmp_path / "b"))


def test_a_history_holds_what_ended_by_its_request_and_nothing_else(tmp_path: Path) -> None:
    release = random_release(1)
    data = prepare(release, tmp_path)
    users, times = data.user_ids()[data.samples["user_row"]], data.samples["request_time"]
    for domain in DOMAINS:
        offsets = data.events[domain].offsets[data.samples["user_row"]]
        held = (data.samples[f"{domain}_end"] - offsets).tolist()
        known = [(user, max(end, start + 1)) for (user, start, _), end in _longest(release, domain).items()]
        wanted = [sum(who == user and at <= now for who, at in known) for user, now in zip(users, times, strict=True)]
        assert held == wanted
        assert sum(held) > 0


def _longest(release: Release, domain: str) -> dict[tuple[int, int, int], int]:
    """The end of each view, the latest of its repeats."""
    file, columns = (
        (ENTRIES, ("live_play_start_timestamp", "live_id", "live_play_end_timestamp"))
        if domain == "live"
        else (PLAYS, ("enter_timestamp", "photo_id", "leave_timestamp"))
    )
    found: dict[tuple[int, int, int], int] = {}
    for row in release.rows[file]:
        start, viewed, end = (row[column] for column in columns)
        key = (row["user_id"], start, viewed)
        found[key] = max(end, found.get(key, end))
    return found
