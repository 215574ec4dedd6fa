from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store.matrices import candidate_matrix, history_matrix, user_inputs
from feature_store.records import UserRecord, records_from_columns
from feature_store.schema import MISSING, RecordSchema, default_schema
from feature_store.view import ModelView, ViewField

Make = Callable[..., np.ndarray]
NOW_MS = 1_700_000_100_000  # conftest: view 99 is known half a second before, view 100 half a second after


def fields(*names: str) -> tuple[ViewField, ...]:
    return tuple(ViewField(name=name, kind="category", width=4, rows=10) for name in names)


@pytest.fixture
def view() -> ModelView:
    return ModelView(
        history_length=5,
        tasks=("ctr",),
        video=fields("author_id", "event_time", "tag"),
        live=fields("author_id", "cluster"),
        candidate=fields("author_id", "live_id", "tag"),
        user=fields("user_id", "activity_group"),
        context=(*fields("page"), ViewField(name="hour", kind="hour", width=4)),
    )


def views_of(history: np.ndarray, now_ms: int, delay_ms: int = 0, length: int = 5) -> list[int]:
    matrix, count = history_matrix(history, ("view_id",), now_ms, delay_ms, length)
    assert matrix.shape == (length, 1)
    assert matrix.dtype == np.int64
    assert (matrix[count:] == MISSING).all()
    views: list[int] = matrix[:count, 0].tolist()
    return views


def test_the_newest_known_views_oldest_first(make_events: Make) -> None:
    history = make_events("video", 200)
    assert views_of(history, NOW_MS) == [95, 96, 97, 98, 99]
    assert views_of(history, NOW_MS + 500) == [96, 97, 98, 99, 100]
    assert views_of(history, NOW_MS + 499) == [95, 96, 97, 98, 99]
    assert views_of(history, NOW_MS, delay_ms=97_000) == [0, 1, 2]
    assert views_of(history, 0) == []
    assert views_of(history[:0], NOW_MS) == []
    assert views_of(history, NOW_MS, length=1) == [99]


def test_views_in_progress_are_not_read(make_events: Make) -> None:
    done = make_events("video", 3)
    in_progress = make_events("video", 2, first=3, known_after=[MISSING, MISSING])
    assert views_of(np.concatenate([done, in_progress]), NOW_MS) == [0, 1, 2]
    assert views_of(in_progress, NOW_MS) == []


def test_user_inputs(schema: RecordSchema, make_events: Make, view: ModelView) -> None:
    attributes = records_from_columns(schema, "user", {"user_id": [8], "activity_group": [2]})[0]
    live = make_events("live", 7, cluster=[None, 1, 2, 3, 4, 5, 6])
    user = UserRecord(attributes, make_events("video", 2, tag=[4, None]), live, 1)
    inputs = user_inputs(view, user, 8, {"page": 3}, NOW_MS)
    assert {name: value.shape for name, value in inputs.feeds().items()} == {
        "video": (1, 5, 3), "video_length": (1,), "live": (1, 5, 2), "live_length": (1,), "user": (1, 3), "now": (1,),
    }  # fmt: skip
    assert all(value.dtype == np.int64 for value in inputs.feeds().values())
    assert inputs.video[0, :2].tolist() == [[0, 1_700_000_000_000, 4], [10, 1_700_000_001_000, MISSING]]
    assert (inputs.video[0, 2:] == MISSING).all()
    assert inputs.live[0].tolist() == [[author * 10, author] for author in range(2, 7)]
    assert (inputs.video_length.tolist(), inputs.live_length.tolist()) == ([2], [5])
    assert (inputs.user.tolist(), inputs.now.tolist()) == ([[8, 2, 3]], [NOW_MS])


def test_what_is_not_known_of_a_user_is_missing(schema: RecordSchema, make_events: Make, view: ModelView) -> None:
    unknown = user_inputs(view, None, 8, {}, NOW_MS)
    assert unknown.user.tolist() == [[8, MISSING, MISSING]]
    assert (unknown.video == MISSING).all()
    assert unknown.video.shape == (1, 5, 3)
    only_events = UserRecord(None, make_events("video", 1), make_events("live", 0), 1)
    assert user_inputs(view, only_events, 8, {"page": 0}, NOW_MS).user.tolist() == [[8, MISSING, 0]]
    unset = records_from_columns(schema, "user", {"user_id": [8]})[0]
    assert user_inputs(view, replace(only_events, attributes=unset), 8, {}, NOW_MS).user[0, 1] == MISSING


def authors_of(schema: RecordSchema, rows: list[tuple[int, int, int]]) -> dict[int, np.ndarray]:
    """Rows (author, live, tag), the newest of an author last."""
    columns = {name: [row[i] for row in rows] for i, name in enumerate(("author_id", "live_id", "tag"))}
    records = records_from_columns(schema, "author", columns)
    return {author: records[records["author_id"] == author] for author, _, _ in rows}


CASES = {
    "the requested live": (7, 71, [7, 71, 1]),
    "the newest live": (7, 72, [7, 72, 2]),
    "no live requested": (7, MISSING, [7, 72, 2]),
    "a live not kept": (7, 99, [7, 99, 2]),
    "an unknown author": (5, 50, [5, 50, MISSING]),
    "an unknown author, no live": (5, MISSING, [5, MISSING, MISSING]),
    "another author's live": (8, 71, [8, 71, 3]),
    "a live without id": (9, MISSING, [9, MISSING, 5]),
    "an author without records": (6, 60, [6, 60, MISSING]),
}


def test_candidates(schema: RecordSchema, view: ModelView) -> None:
    authors = authors_of(schema, [(7, 71, 1), (7, 72, 2), (8, 81, 3), (9, 91, 4), (9, MISSING, 5)])
    authors[6] = np.empty(0, schema.dtype("author"))
    author_ids, live_ids, rows = (list(part) for part in zip(*CASES.values(), strict=True))
    matrix, unknown = candidate_matrix(view, np.array(author_ids), np.array(live_ids), authors)
    assert matrix.dtype == np.int64
    assert dict(zip(CASES, matrix.tolist(), strict=True)) == dict(zip(CASES, rows, strict=True))
    assert unknown.tolist() == [author in (5, 6) for author in author_ids]


@pytest.mark.parametrize("count", [0, 1, 2000])
def test_numbers_of_candidates(schema: RecordSchema, view: ModelView, count: int) -> None:
    ids = np.arange(count)
    matrix, unknown = candidate_matrix(view, ids, np.full(count, MISSING), {})
    assert matrix.shape == (count, 3)
    assert unknown.all()
    authors = authors_of(schema, [(author, author + 1, author % 9) for author in ids.tolist()])
    matrix, unknown = candidate_matrix(view, ids, np.full(count, MISSING), authors)
    assert matrix.tolist() == [[i, i + 1, i % 9] for i in range(count)]
    assert not unknown.any()


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 9)), max_size=12, unique_by=lambda r: r[:2]
    ),
    st.lists(st.tuples(st.integers(0, 4), st.sampled_from([0, 1, 2, 3, 4, MISSING])), max_size=8),
)
def test_candidates_equal_a_plain_reference(rows: list[tuple[int, int, int]], asked: list[tuple[int, int]]) -> None:
    view = ModelView(tasks=("ctr",), video=(), live=(), candidate=fields("tag", "live_id"), user=())
    expected = []
    for author, live in asked:
        lives = {row[1]: row[2] for row in rows if row[0] == author}
        newest = list(lives)[-1] if lives else MISSING
        expected.append([lives.get(live, lives.get(newest, MISSING)), newest if live == MISSING else live])
    ids = np.array(asked, np.int64).reshape(-1, 2)
    matrix, _ = candidate_matrix(view, ids[:, 0], ids[:, 1], authors_of(default_schema(), rows))
    assert matrix.tolist() == expected
