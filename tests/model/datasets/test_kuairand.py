"""KuaiRand in the official format: on files made here, and on the real logs where they are."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pytest

from feature_store.schema import MISSING, widen
from model.datasets.kuairand import LOG_FILES, USER_FILE, VIDEO_FILE, prepare_kuairand
from model.datasets.kuairand_view import GROUPS, KUAIRAND_SCHEMA, KUAIRAND_VIEW, UPLOAD_TYPES
from model.datasets.prepared import Prepared
from model.datasets.samples import gather
from model.datasets.source import SourceError

LOG = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
)
USERS = (
    "user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,follow_user_num,"
    "follow_user_num_range,fans_user_num,fans_user_num_range,friend_user_num,friend_user_num_range,register_days,"
    "register_days_range," + ",".join(f"onehot_feat{i}" for i in range(18))
)
VIDEOS = (
    "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,server_height,"
    "music_id,music_type,tag"
)
FIRST, SECOND, THIRD = 20220425, 20220426, 20220427
TEST_FROM = date(2022, 4, 27)
REAL = Path(__file__).parents[4] / "shared" / "data" / "kuairand_pure"


def at(day: int, second: int) -> int:
    """ms since 1970 of a second of a day of Beijing."""
    midnight = datetime(day // 10_000, day // 100 % 100, day % 100, tzinfo=UTC).timestamp() - 8 * 3600
    return int(midnight + second) * 1000


def log_row(user: int, video: int, day: int, second: int, tab: int, play: int = 0, **acts: int) -> str:
    names = ("is_click", "is_like", "is_follow", "is_comment", "is_forward", "is_hate", "long_view")
    flags = [acts.get(name, 0) for name in names]
    values = [
        user,
        video,
        day,
        1800,
        at(day, second),
        *flags,
        play,
        30_000,
        0,
        0,
        acts.get("is_profile_enter", 0),
        0,
        tab,
    ]
    return ",".join(map(str, values))


def user_row(user: int, degree: str = "full_active", streamer: int = 1) -> str:
    onehots = ",".join(["1"] * 4 + [""] + ["0"] * 7 + ["1.0"] * 6)
    return f'{user},{degree},0,{streamer},1,514,500+,150,"[100,1k)",34,"[30,60)",799,730+,{onehots}'


def video_row(video: int, author: int, tag: str = "39", upload: str = "Web", duration: str = "87433.0") -> str:
    return f"{video},{author},NORMAL,2022-04-10,{upload},0.0,{duration},720.0,1280.0,9155697141,9.0,{tag}"


BASE_LOG = [
    log_row(1, 10, FIRST, 100, 1, 5_000, is_click=1, is_like=1),
    log_row(1, 11, FIRST, 200, 6, 3_000, is_click=1, long_view=1, is_follow=1),
    log_row(1, 10, SECOND, 100, 0, 2_999, is_comment=1, is_profile_enter=1),
    log_row(2, 12, SECOND, 300, 1, 0),
    log_row(2, 99, SECOND, 400, 4, 0, is_hate=1),
    log_row(3, 11, THIRD, 0, 6, 10_000, is_click=1, is_forward=1),
    log_row(1, 12, THIRD, 50, 14, 0),
]
BASE_USERS = [user_row(1), user_row(2, "2_14_day_new", -124), user_row(4, "UNKNOWN")]
BASE_VIDEOS = [video_row(10, 700, '"12,65"'), video_row(11, 700, "", "PhotoCopy", ""), video_row(12, 8_733_983)]


def write(
    folder: Path,
    log: list[str] = BASE_LOG,
    users: list[str] = BASE_USERS,
    videos: list[str] = BASE_VIDEOS,
    name: str = LOG_FILES[1],
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for file, header, rows in ((name, LOG, log), (USER_FILE, USERS, users), (VIDEO_FILE, VIDEOS, videos)):
        (folder / file).write_text("\n".join([header, *rows]) + "\n")
    return folder


def prepare(folder: Path, **options: str) -> Prepared:
    return prepare_kuairand(folder, folder.parent / "out", TEST_FROM, **options)  # type: ignore[arg-type]


def acts_of(bits: int) -> set[str]:
    return {name for bit, name in enumerate(KUAIRAND_SCHEMA.behaviours) if bits >> bit & 1}


def test_the_view_fits_its_schema_and_the_papers_widths() -> None:
    assert (KUAIRAND_VIEW.width("video"), KUAIRAND_VIEW.width("live")) == (92, 64)
    assert KUAIRAND_VIEW.tasks == ("ctr", "etr", "lvtr", "ltr", "cmtr", "wtr")
    assert KUAIRAND_VIEW.missing_from(KUAIRAND_SCHEMA) == []
    assert "gift" not in KUAIRAND_SCHEMA.behaviours


def test_tab_one_is_video_and_the_rest_is_live(tmp_path: Path) -> None:
    data = prepare(write(tmp_path / "kuairand"))
    assert (len(data.events["video"]), len(data.events["live"])) == (2, 5)
    samples = data.samples
    assert samples["request_time"].tolist() == [
        at(d, s) for d, s in ((FIRST, 200), (SECOND, 100), (SECOND, 400), (THIRD, 0), (THIRD, 50))
    ]
    assert samples["page"].tolist() == [6, 0, 4, 6, 14]
    assert samples["live_id"].tolist() == [11, 10, 99, 11, 12]
    assert samples["labels"].tolist() == [
        [1, 1, 1, 0, 0, 1],
        [0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
    ]
    assert data.info.splits == {"train": (0, 1), "valid": (1, 3), "test": (3, 5)}
    assert data.info.group_names == GROUPS


def test_events_keep_every_exposure_and_what_happened(tmp_path: Path) -> None:
    data = prepare(write(tmp_path / "kuairand"))
    bits = data.events["live"].columns["behaviours"].tolist()
    assert [acts_of(b) for b in bits] == [
        {"click", "effective_view", "long_view", "follow"},
        {"comment", "profile_enter"},
        set(),
        {"hate"},
        {"click", "effective_view", "share"},
    ]
    assert data.events["video"].columns["play_time"].tolist() == [5_000, 0]
    assert data.events["video"].columns["known_after"].tolist() == [5_000, 1]
    assert data.events["video"].columns["duration"].tolist() == [30_000, 30_000]
    assert len(np.unique(data.events["live"].columns["view_id"])) == 5


def test_attributes_and_what_is_missing(tmp_path: Path) -> None:
    data = prepare(write(tmp_path / "kuairand"))
    candidate = {
        name: widen(np.asarray(data.samples[name])).tolist() for name in ("author_id", "tag", "second_tag", "duration")
    }
    assert candidate["author_id"] == [700, 700, MISSING, 700, 8_733_983]  # video 99 is in no file
    assert candidate["tag"] == [MISSING, 12, MISSING, MISSING, 39]
    assert candidate["second_tag"] == [MISSING, 65, MISSING, MISSING, MISSING]
    assert candidate["duration"] == [MISSING, 87_433, MISSING, MISSING, 87_433]
    assert data.samples["upload_type"][0] == UPLOAD_TYPES.index("PhotoCopy")
    users = {name: widen(np.asarray(column)).tolist() for name, column in data.users.items()}
    assert users["user_id"] == [1, 2, 3, 4]
    assert users["activity_group"] == [GROUPS.index("full"), GROUPS.index("new"), MISSING, MISSING]
    assert users["is_live_streamer"] == [1, MISSING, MISSING, 1]
    assert users["onehot_feat4"] == [MISSING] * 4
    assert users["onehot_feat17"] == [1, 1, MISSING, 1]
    assert users["fans_user_num"] == [150, 150, MISSING, 150]


def test_a_view_without_play_is_not_in_its_own_history(tmp_path: Path) -> None:
    slate = [log_row(5, video, THIRD, 500, 6) for video in (10, 11, 12)]
    data = prepare(write(tmp_path / "kuairand", [*BASE_LOG, *slate]))
    rows = np.flatnonzero(data.samples["request_time"] == at(THIRD, 500))
    batch = gather(data, rows)
    assert batch.users.live_length[batch.request].tolist() == [0, 0, 0]


def test_repeats_are_kept_once_per_domain_and_joined(tmp_path: Path) -> None:
    repeats = [
        log_row(1, 11, FIRST, 200, 2, 9_000, is_like=1),
        log_row(1, 11, FIRST, 200, 1, 50),  # of the other domain
        log_row(1, 11, FIRST, 200, 6, 3_000),
    ]
    data = prepare(write(tmp_path / "kuairand", [*BASE_LOG, *repeats]))
    assert (data.info.counts["live_repeats"], data.info.counts["video_repeats"]) == (2, 0)
    assert (len(data.events["video"]), len(data.events["live"])) == (3, 5)
    assert data.samples["labels"][0].tolist() == [1, 1, 1, 1, 0, 1]
    assert data.samples["page"][0] == 6
    assert data.events["live"].columns["play_time"][0] == 9_000


def test_the_folder_or_its_parent_and_any_of_the_logs(tmp_path: Path) -> None:
    write(tmp_path / "kuairand" / "data", BASE_LOG[:3], name=LOG_FILES[0])
    write(tmp_path / "kuairand" / "data", BASE_LOG[3:], name=LOG_FILES[2])
    whole = prepare(write(tmp_path / "whole" / "kuairand"))
    parts = prepare(tmp_path / "kuairand")
    assert whole.info == parts.info
    for domain in ("video", "live"):
        for name, column in whole.events[domain].columns.items():  # type: ignore[index]
            assert np.array_equal(column, parts.events[domain].columns[name])  # type: ignore[index]


@pytest.mark.parametrize("name", [USER_FILE, VIDEO_FILE, LOG_FILES[1]])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "kuairand")
    (folder / name).unlink()
    with pytest.raises(SourceError, match=name.replace(".", r"\.")):
        prepare(folder)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "kuairand")
    text = (folder / LOG_FILES[1]).read_text()
    (folder / LOG_FILES[1]).write_text(text.replace("is_comment", "commented", 1))
    with pytest.raises(SourceError, match="no column is_comment"):
        prepare(folder)


CORRUPT_LOG = [
    ("1,2,3", "3 columns, not 19"),
    ("", "1 columns, not 19"),
    (log_row(1, 10, FIRST, 1, 6) + ",7", "20 columns, not 19"),
    (log_row(1, 10, FIRST, 1, 6).replace("1,10,", "one,10,", 1), "user_id is one, not an integer"),
    (log_row(1, 10, FIRST, 1, 6, play=-4), "play_time_ms is -4"),
    (log_row(1, 10, FIRST, 1, 6, is_like=2), "is_like is 2"),
    (log_row(1, 10, FIRST, 1, 6).replace(str(at(FIRST, 1)), "-1650000000000"), "time_ms is -1650000000000"),
    (log_row(1, 10, FIRST, 1, 6).replace(str(at(FIRST, 1)), "1.5e12"), "time_ms is 1.5e12"),
    ('"' + log_row(1, 10, FIRST, 1, 6), "a quote that does not enclose a value"),
    (log_row(1, 10, FIRST, 1, 6).replace("1800", '1"80"0', 1), "a quote that does not"),
    (log_row(1, 10, FIRST, 1, 6).replace("1,10,", ",10,", 1), "user_id is missing"),
]


@pytest.mark.parametrize(("row", "problem"), CORRUPT_LOG)
def test_corrupt_log_rows_stop_or_are_counted(tmp_path: Path, row: str, problem: str) -> None:
    log = [*BASE_LOG[:2], row, *BASE_LOG[2:], row]
    folder = write(tmp_path / "kuairand", log)
    with pytest.raises(SourceError, match=rf"{LOG_FILES[1]}: line 4: {problem}.*; 2 of 9 rows are corrupt"):
        prepare(folder)
    data = prepare(folder, on_error="skip")
    assert data.info.counts["corrupt_log_rows"] == 2
    assert data.info.counts["log_rows"] == 9
    assert len(data.samples["labels"]) == 5


def test_corrupt_attribute_rows_stop_or_are_counted(tmp_path: Path) -> None:
    users = [user_row(1), "2,full_active", user_row(3).replace("514", "many")]
    videos = [video_row(10, 700), video_row(11, 700, '"12,x"'), video_row(12, -1)]
    folder = write(tmp_path / "kuairand", users=users)
    with pytest.raises(SourceError, match=f"{USER_FILE}: line 3: 2 columns, not 31; 2 of 3 rows"):
        prepare(folder)
    write(folder, videos=videos)
    with pytest.raises(SourceError, match=f"{VIDEO_FILE}: line 3: tag is 12,x, not a list of integers; 2 of 3 rows"):
        prepare(folder)
    write(folder, users=users, videos=videos)
    counts = prepare(folder, on_error="skip").info.counts
    assert (counts["corrupt_user_rows"], counts["corrupt_video_rows"]) == (2, 2)


def test_windows_line_ends_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "kuairand")
    plain = prepare(folder).samples["labels"].tolist()
    for file in (LOG_FILES[1], USER_FILE, VIDEO_FILE):
        text = (folder / file).read_text()
        (folder / file).write_bytes(("\ufeff" + text.replace("\n", "\r\n")).encode())
    assert prepare(folder).samples["labels"].tolist() == plain


def test_date_decides_the_split_where_time_disagrees(tmp_path: Path) -> None:
    late = log_row(6, 10, SECOND, 86_399, 6).replace(str(SECOND), str(THIRD), 1)
    data = prepare(write(tmp_path / "kuairand", [*BASE_LOG, late]))
    assert data.info.counts["other_date"] == 1
    plain = prepare(write(tmp_path / "plain"))
    assert len(data.rows("test")) == len(plain.rows("test")) + 1


@pytest.mark.skipif(not REAL.is_dir(), reason="the real logs (../shared/data/kuairand_pure) are not here")
def test_the_real_logs_give_the_known_figures(tmp_path: Path) -> None:
    data = prepare_kuairand(REAL, tmp_path / "out", date(2022, 5, 5))
    counts = data.info.counts
    assert (counts["log_rows"], counts["corrupt_log_rows"]) == (198_895, 0)
    assert counts["samples"] == counts["live_events"] == 42_999
    assert counts["live_events"] + counts["live_repeats"] == 48_311
    assert (counts["video_events"], counts["video_repeats"]) == (150_584, 0)
    assert counts["other_date"] == 1_789
    assert (counts["users"], counts["lives"]) == (27_285, 7_583)
    test = gather(data, data.rows("test"))
    assert len(test.labels) == 5_889
    # Before repeats are removed the test days have 14 follows; 8 views remain.
    assert dict(zip(data.info.tasks, test.labels.sum(axis=0).astype(int).tolist(), strict=True))["cmtr"] == 6
    assert dict(zip(data.info.tasks, test.labels.sum(axis=0).astype(int).tolist(), strict=True))["wtr"] == 8
    assert (test.users.video_length <= 5).mean() == pytest.approx(0.62, abs=0.005)
