"""What a sample sees: the same as a plain-Python reading of the logs, and nothing that was known after its request."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parquet_logs import ACTS, START_MS, STEP_MS, Logs, views

from feature_store.schema import DOMAINS, MISSING
from model.datasets.logs import prepare_logs
from model.datasets.prepared import Prepared
from model.datasets.samples import Batch, gather, shuffled_batches

TEST_FROM = date(2025, 3, 3)


def prepare(logs: Logs, folder: Path) -> Prepared:
    return prepare_logs(logs.write(folder / "logs"), folder / "out", TEST_FROM, rows_per_bucket=100)


def asked_before(logs: Logs, seed: int) -> Logs:
    """The same logs, in which a view begins up to 15 minutes after the request that led to it."""
    frame = logs.frames["live_events"]
    steps = pl.Series(np.random.default_rng(seed).integers(0, 4, len(frame)))
    return Logs(logs.frames | {"live_events": frame.with_columns(request_time=pl.col("event_time") - steps * STEP_MS)})


def expected_history(logs: Logs, data: Prepared, domain: str, user_id: int, now: int) -> list[list[int]]:
    """The newest events of a user that were known at `now`, read row by row from the logs."""
    known = []
    for row in logs.frames[f"{domain}_events"].iter_rows(named=True):
        known_at = row["event_time"] + max(row["play_time"], 1)
        if row["user_id"] == user_id and known_at <= now - data.view.history_delay_s * 1000:
            row["behaviours"] = sum(row[act] << bit for bit, act in enumerate(ACTS))
            known.append((known_at, row["view_id"], row))
    known.sort(key=lambda event: event[:2])
    columns = data.view.columns(domain)  # type: ignore[arg-type]
    return [[row[column] for column in columns] for _, _, row in known[-data.view.history_length :]]


def test_gather_agrees_with_a_plain_reading(tmp_path: Path) -> None:
    logs = Logs.random(11, video=900)
    data = prepare(logs, tmp_path)
    rows = np.arange(len(data.samples["labels"]))
    batch = gather(data, rows)
    groups = dict(logs.frames["users"].iter_rows())
    live = logs.frames["live_events"].sort("event_time", "user_id", "author_id", "live_id", maintain_order=True)
    for i, row in enumerate(live.iter_rows(named=True)):
        u = batch.request[i]
        assert batch.users.now[u] == row["event_time"]
        assert batch.candidates[i].tolist() == [row[c] for c in data.view.columns("candidate")]
        user = {"user_id": row["user_id"], "activity_group": groups.get(row["user_id"], MISSING)}
        assert batch.users.user[u].tolist() == [*(user[c] for c in data.view.columns("user")), row["page"]]
        for domain in DOMAINS:
            expected = expected_history(logs, data, domain, row["user_id"], row["event_time"])
            matrix, lengths = getattr(batch.users, domain), getattr(batch.users, f"{domain}_length")
            assert lengths[u] == len(expected)
            assert matrix[u, : lengths[u]].tolist() == expected
            assert (matrix[u, lengths[u] :] == MISSING).all()
    assert batch.known.all()
    assert batch.users.video_length.max() == 50


def test_a_history_is_what_was_known_at_the_request_and_not_at_the_view(tmp_path: Path) -> None:
    logs = asked_before(Logs.random(11, video=900, live=200), 11)
    data = prepare(logs, tmp_path)
    batch = gather(data, np.arange(200))
    live = logs.frames["live_events"].sort("request_time", "user_id", "author_id", "live_id", maintain_order=True)
    for request, row in zip(batch.request, live.iter_rows(named=True), strict=True):
        assert batch.users.now[request] == row["request_time"]
        for domain in DOMAINS:
            expected = expected_history(logs, data, domain, row["user_id"], row["request_time"])
            assert getattr(batch.users, domain)[request, : len(expected)].tolist() == expected
            assert getattr(batch.users, f"{domain}_length")[request] == len(expected)


def test_slate_mates_that_began_one_after_the_other_do_not_see_each_other(tmp_path: Path) -> None:
    logs = Logs.random(13)
    slate = views(4, np.random.default_rng(0), live=True, first_view=5_000)
    begin = [START_MS + 5_000 + ms for ms in (0, 2_000, 7_000, 60_000)]
    shown = pl.DataFrame({"user_id": [1] * 4, "event_time": begin, "play_time": [0, 3_000, 20_000, 1]})
    slate = slate.with_columns(shown.get_columns()).with_columns(request_time=pl.lit(START_MS + 5_000, pl.Int64))
    asked = logs.frames["live_events"].with_columns(request_time="event_time")
    data = prepare(Logs(logs.frames | {"live_events": pl.concat([asked, slate])}), tmp_path)
    rows = np.flatnonzero((data.samples["request_time"] == START_MS + 5_000) & (data.samples["user_row"] == 0))
    spans = _spans(data, rows)
    assert len(spans) == 4
    assert len(set(spans)) == 1
    assert not set(data.events["live"].columns["view_id"][slice(*spans[0])].tolist()) & {5_000, 5_001, 5_002, 5_003}


def test_trimmed_batches_differ_in_pads_only(tmp_path: Path) -> None:
    data = prepare(Logs.random(12), tmp_path)
    rows = np.arange(20)
    full, trimmed = gather(data, rows).users, gather(data, rows, trim=True).users
    for domain in DOMAINS:
        slots = getattr(trimmed, domain).shape[1]
        assert slots == max(1, getattr(full, f"{domain}_length").max())
        assert np.array_equal(getattr(full, domain)[:, :slots], getattr(trimmed, domain))
        assert (getattr(full, domain)[:, slots:] == MISSING).all()


def test_a_request_sees_neither_itself_nor_its_slate_mates(tmp_path: Path) -> None:
    logs = Logs.random(13)
    slate = views(4, np.random.default_rng(0), live=True, first_view=5_000)
    same = pl.DataFrame({"user_id": [1] * 4, "event_time": [START_MS + 5_000] * 4, "play_time": [0, 0, 1, 10_000]})
    logs.frames["live_events"] = pl.concat([logs.frames["live_events"], slate.with_columns(same.get_columns())])
    data = prepare(logs, tmp_path)
    rows = np.flatnonzero((data.samples["request_time"] == START_MS + 5_000) & (data.samples["user_row"] == 0))
    assert len(rows) == 4
    seen = [set(data.events["live"].columns["view_id"][s:e].tolist()) for s, e in _spans(data, rows)]
    assert all(not view & {5_000, 5_001, 5_002, 5_003} for view in seen)


def _spans(data: Prepared, rows: np.ndarray) -> list[tuple[int, int]]:
    starts = data.events["live"].offsets[data.samples["user_row"][rows]]
    return list(zip(starts.tolist(), data.samples["live_end"][rows].tolist(), strict=True))


def _sample(data: Prepared, key: dict[str, int]) -> Batch:
    """The one sample of `key`, gathered."""
    users = data.user_ids()[data.samples["user_row"]]
    mine = (users == key["user_id"]) & (data.samples["request_time"] == key["request_time"])
    mine &= (data.samples["author_id"] == key["author_id"]) & (data.samples["live_id"] == key["live_id"])
    return gather(data, np.flatnonzero(mine)[:1])


def _rewrite_future(logs: Logs, sample: dict[str, Any], rng: np.random.Generator) -> Logs:
    """The same logs with everything that was not known at the sample's request changed, removed or added to."""
    now, frames = sample["request_time"], dict(logs.frames)
    for domain in DOMAINS:
        frame = frames[f"{domain}_events"]
        known = (pl.col("event_time") + pl.max_horizontal("play_time", 1)) <= now
        own = pl.col("view_id") == sample["view_id"] if domain == "live" else pl.lit(False)
        future = frame.filter(~known & ~own)
        future = future.filter(pl.Series(rng.random(len(future)) < 0.6, dtype=pl.Boolean))
        flipped = [(1 - pl.col(act)).alias(act) for act in ACTS]
        future = future.with_columns(*flipped, author_id=pl.col("author_id") + 100, play_time=pl.col("play_time") + 777)
        added = views(30, rng, live=domain == "live", first_view=9_000, users=9)
        # Some begin before the request, and end after it.
        begin = pl.Series(now + rng.integers(-5, 20, 30) * 1_000)
        added = added.with_columns(event_time=begin, play_time=pl.lit(6_000 + rng.integers(0, 9_000, 30)))
        if domain == "live":
            added = added.with_columns(request_time=pl.col("event_time") - 1_000)
        frames[f"{domain}_events"] = pl.concat([frame.filter(known | own), future, added], how="vertical_relaxed")
    return Logs(frames)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), pick=st.floats(0, 1, exclude_max=True))
def test_nothing_known_after_a_request_changes_its_sample(tmp_path: Path, seed: int, pick: float) -> None:
    logs = asked_before(Logs.random(seed, video=250, live=60), seed)
    live = logs.frames["live_events"].unique(["user_id", "request_time", "author_id", "live_id"], keep="none")
    sample = live.sort("view_id").row(int(pick * len(live)), named=True)
    rewritten = _rewrite_future(logs, sample, np.random.default_rng(seed))
    before, after = (_sample(prepare(each, tmp_path), sample) for each in (logs, rewritten))
    for name, values in before.users.feeds().items():
        assert np.array_equal(values, after.users.feeds()[name]), name
    assert np.array_equal(before.candidates, after.candidates)
    assert np.array_equal(before.labels, after.labels)


def test_the_leak_test_would_see_a_leak(tmp_path: Path) -> None:
    """A sample's batch does change with what was known before its request."""
    logs = asked_before(Logs.random(14), 14)
    sample = logs.frames["live_events"].sort("event_time").row(-1, named=True)
    earlier = logs.frames["video_events"].with_columns(author_id=pl.col("author_id") + 100)
    changed = Logs(logs.frames | {"video_events": earlier})
    before, after = (_sample(prepare(each, tmp_path), sample) for each in (logs, changed))
    assert before.users.video_length[0] > 0
    assert not np.array_equal(before.users.video, after.users.video)


@pytest.mark.parametrize("domain", DOMAINS)
def test_empty_histories_are_pads(tmp_path: Path, domain: str) -> None:
    data = prepare(Logs.random(15), tmp_path)
    first = gather(data, np.array([0])).users
    if domain == "live":  # the first live view of all has no live history
        assert first.live_length.tolist() == [0]
        assert (first.live == MISSING).all()
    nothing = gather(data, np.empty(0, np.int64)).users
    assert getattr(nothing, domain).shape == (0, 50, len(data.view.columns(domain)))  # type: ignore[arg-type]


def test_a_slate_is_one_request(tmp_path: Path) -> None:
    """Samples of one user, time and page share a request, whatever the order of rows; shuffling keeps them together."""
    logs = Logs.random(5, video=300)
    live = logs.frames["live_events"]
    slates = live.with_columns(event_time=live["event_time"] // 20_000_000 * 20_000_000)
    logs.frames["live_events"] = slates.with_columns(page=pl.lit(1))
    data = prepare(logs, tmp_path)
    rows = np.arange(len(data.samples["labels"]))
    keys = np.stack([data.samples["user_row"], data.samples["request_time"]], axis=1)
    assert len(gather(data, rows).user_rows) == len(np.unique(keys, axis=0)) < len(rows)
    batches = list(shuffled_batches(data, rows, 64, np.random.default_rng(0)))
    assert sum(len(batch.labels) for batch in batches) == len(rows)
    requests = sum(len(batch.user_rows) for batch in batches)
    assert requests <= len(np.unique(keys, axis=0)) + len(batches)  # a batch's end may split one slate
    for batch in batches:
        sampled = {(int(batch.user_rows[r]), int(batch.users.now[r])) for r in batch.request}
        assert len(sampled) == len(batch.user_rows)
