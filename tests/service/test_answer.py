"""The JSON of a ranking."""

from __future__ import annotations

import numpy as np
import orjson
import pytest

from feature_store.schema import MISSING
from service.answer import Rows, json_ids, render
from service.contract import RankAnswer

TASKS = ("ctr", "ltr")
TIMING_MS = {"store": 0.1, "queue": 0.0, "user_tower": 0.2, "candidate_tower": 1.5, "total": 2.0}


def rows(count: int) -> Rows:
    rng = np.random.default_rng(count)
    scores = np.sort(rng.random(count).astype(np.float32))[::-1]
    return Rows(list(range(count)), [None] * count, scores, rng.random((count, len(TASKS))).astype(np.float32))


@pytest.mark.parametrize("count", [0, 1, 2000])
def test_every_value_is_exact(count: int) -> None:
    given = rows(count)
    answer = orjson.loads(render("q1", "v1", TASKS, given, ["no_history"], TIMING_MS))
    assert list(answer) == ["request_id", "model_version", "ranking", "degraded", "timing_ms"]
    assert answer["ranking"] == [
        {
            "author_id": row,
            "live_id": None,
            "score": float(given.scores[row]),
            "xtr": {task: float(given.probabilities[row, column]) for column, task in enumerate(TASKS)},
        }
        for row in range(count)
    ]
    assert (answer["request_id"], answer["model_version"]) == ("q1", "v1")
    assert (answer["degraded"], answer["timing_ms"]) == (["no_history"], TIMING_MS)


def test_it_is_the_answer_of_the_contract() -> None:
    known = {"known": True, "version": 3}
    history = {"events": 2, "stored": 3, "newest_age_ms": None}
    debug = {"user": known, "video": history, "live": history}
    answer = RankAnswer.model_validate_json(render("q1", "v1", TASKS, rows(3), [], TIMING_MS, debug))
    assert answer.debug is not None
    assert answer.debug.model_dump() == debug
    assert RankAnswer.model_validate_json(render("q1", "v1", TASKS, rows(3), [], TIMING_MS)).debug is None


def test_extreme_floats_come_back() -> None:
    values = np.array([0.0, 1e-45, 1.1754944e-38, 1 - 2.0**-24, 1.0], np.float32)
    given = Rows([1] * 5, [2] * 5, values, np.stack([values, values[::-1]], axis=1))
    ranking = orjson.loads(render("q", "v", TASKS, given, [], TIMING_MS))["ranking"]
    assert np.array_equal(np.array([row["score"] for row in ranking], np.float32), values)
    assert np.array_equal(np.array([row["xtr"]["ltr"] for row in ranking], np.float32), values[::-1])


def test_text_is_escaped() -> None:
    given = Rows(['a"b', "Ünï\n"], [None, "\\"], np.zeros(2, np.float32), np.zeros((2, 2), np.float32))
    ranking = orjson.loads(render('q"', "v", TASKS, given, [], TIMING_MS))["ranking"]
    assert [(row["author_id"], row["live_id"]) for row in ranking] == [('a"b', None), ("Ünï\n", "\\")]


def test_ids() -> None:
    exact = 2**53
    assert json_ids(np.array([exact, -exact, 0])) == [exact, -exact, 0]
    assert json_ids(np.array([exact + 1, -exact - 1, 5, MISSING])) == [str(exact + 1), str(-exact - 1), 5, None]
    assert json_ids(np.empty(0, np.int64)) == []
