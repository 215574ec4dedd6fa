"""The fault benches' own arithmetic: their verdicts must be able to fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feature_store.matrices import UserInputs
from loadtest.bench import faults, fuzz, soak
from loadtest.bench.faults_answers import wrong_answer
from loadtest.bench.faults_artifacts import all_nan, corrupted, incompatible, poisoned
from loadtest.bench.faults_lab import Usage, Watched
from loadtest.bench.faults_redis import Course, verdict
from loadtest.bench.faults_workers import mixed_answers
from loadtest.bench.fuzz import Findings
from loadtest.bench.parts import UnknownPartError
from loadtest.load.figures import Answer, LoadResult
from loadtest.load.trace import Kind, Trace
from model.artifact.engine import Engine, Piece
from model.artifact.golden import load_golden
from model.artifact.manifest import GOLDEN, Artifact, ArtifactError

WHOLE, STALE, EMPTY, LOST = (
    Kind(200, "m"),
    Kind(200, "m", degraded=("stale_history",)),
    Kind(200, "m", degraded=("no_history",)),
    Kind(),
)
COURSE = Course("stalled", calm=0.0, begin=10.0, end=12.0, until=18.0)
USERS = np.array([7, 8, 9])


def trace(*rows: tuple[float, float, int, Kind]) -> Trace:
    """rows: due [s], latency [ms], body, kind."""
    kinds = tuple(dict.fromkeys(row[3] for row in rows))
    due = np.array([row[0] for row in rows])
    done = due + np.array([row[1] for row in rows]) / 1000
    body = np.array([row[2] for row in rows])
    return Trace(due, due, done, body, np.array([kinds.index(row[3]) for row in rows]), kinds)


def test_a_fault_that_nobody_noticed() -> None:
    found = verdict(
        trace((5, 3, 0, WHOLE), (10.5, 4, 0, STALE), (11, 5, 1, EMPTY), (13, 3, 0, WHOLE)), USERS, COURSE, 100
    )
    assert (found["late"], found["refused"], found["calm_degraded"], found["back_s"]) == (0, 0, 0, 0.0)
    assert (found["repeats"], found["repeat_share"]) == (1, 1.0)  # user 8 was not seen before
    assert found["words"] == {"no_history": 1, "stale_history": 1}
    assert found["slowest_ms"] == pytest.approx(5)


def test_all_that_can_go_wrong_is_counted() -> None:
    rows = [(5, 3, 0, WHOLE), (6, 3, 1, WHOLE), (8, 3, 1, EMPTY)]  # degraded while all is healthy
    rows += [(10.5, 130, 0, STALE), (11, 5, 1, EMPTY), (11.5, 5, 2, LOST), (16, 3, 0, STALE)]
    found = verdict(trace(*rows), USERS, COURSE, 100)
    assert (found["late"], found["refused"], found["calm_degraded"]) == (1, 1, 1)
    assert found["repeat_share"] == 0.5
    assert found["back_s"] == pytest.approx(4.0)


def test_who_was_last_seen_long_ago_is_no_repeat() -> None:
    course = Course("killed", 0.0, begin=100.0, end=102.0, until=108.0)
    found = verdict(trace((5, 3, 0, WHOLE), (101, 3, 0, EMPTY)), USERS, course, 100)
    assert (found["repeats"], found["repeat_share"]) == (0, None)


def ranking(*scores: float | None) -> dict[str, Any]:
    return {"ranking": [{"author_id": n, "score": s, "xtr": {"ctr": 0.5}} for n, s in enumerate(scores)]}


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        (ranking(0.9, 0.4, 0.4), None),
        (ranking(0.9, 0.4), "2 authors"),
        (ranking(0.4, 0.9, 0.1), "not sorted by score"),
        (ranking(0.4, None, 0.1), "not sorted by score"),
        (
            {"ranking": [*ranking(3, 2)["ranking"], {"author_id": 9, "score": 1, "xtr": {}}]},
            "authors that were not asked for, or twice",
        ),
        (
            {"ranking": [*ranking(3, 2)["ranking"], {"author_id": 2, "score": 1, "xtr": {"ctr": None}}]},
            "a probability is outside 0..1",
        ),
    ],
)
def test_wrong_answers_are_found(answer: dict[str, Any], wrong: str | None) -> None:
    assert wrong_answer({"candidates": [0, 1, 2]}, answer) == wrong


def test_an_answer_with_the_scores_of_another_model_is_mixed() -> None:
    known = {"a": [np.array([1.0, 0.5])], "b": [np.array([1.2, 0.4])]}
    said = [("a", [1.0, 0.5]), ("b", [1.2, 0.4]), ("b", [1.0, 0.5]), ("a", [1.0, 0.4])]
    texts = [json.dumps({"model_version": version, **ranking(*scores)}) for version, scores in said]
    blank = dict.fromkeys(("p50_ms", "p95_ms", "p99_ms", "p999_ms", "max_ms", "per_second", "seconds"), 0.0)
    rest: dict[str, Any] = {"requests": 3, "statuses": {}, "errors": 0, "answered": 3, "generator_cpu_share": 0.0}
    answers = [Answer(body=0, ms=1.0, text=text) for text in texts]
    load = LoadResult(**blank, **rest, generator_cpu_us=0.0, late_p99_ms=0.0, answers=answers)
    assert mixed_answers(load, known) == [True, False]


def test_growth_is_the_slope_and_its_interval_holds_it() -> None:
    requests = np.linspace(0.0, 0.5, 20)
    rss = 400 + 30 * requests + np.random.default_rng(1).normal(0, 0.5, 20)
    found = soak.growth(requests, rss)
    assert found is not None
    assert found["slope"] == pytest.approx(30, abs=3)
    assert found["low"] < 30 < found["high"]
    assert found["high"] - found["low"] < 8
    assert soak.growth(requests[:2], rss[:2]) is None
    flat = soak.growth(requests, np.full(20, 400.0))
    assert flat == {"slope": 0.0, "low": 0.0, "high": 0.0}


def test_a_soak_tells_what_became_of_those_that_failed() -> None:
    failures = [{"503 overloaded": 2}, {}, {"503 overloaded": 1, "0": 1}]
    minutes = [
        soak.Minute(Usage(60.0 * number, 400.0, 30, 8), 100, sum(each.values()), each, 0, 20.0, {})
        for number, each in enumerate(failures)
    ]
    found = soak.figures(minutes)
    assert (found["failed"], found["failures"]) == (4, {"503 overloaded": 3, "0": 1})


def test_memory_that_grows_is_seen() -> None:
    watched = Watched(1)
    watched.usages = [Usage(at, rss, 1, 1) for at, rss in enumerate([90.0, 95.0, 100.0, 100.0, 110.0, 110.0])]
    assert watched.rss_growth() == pytest.approx(1.1)


def test_findings_tell_5xx_and_stack_traces() -> None:
    findings = Findings()
    findings.take("a", 200, b"{}")
    findings.take("b", 503, b'{"type": "urn:farm:problem:overloaded"}')
    findings.take("c", 500, b"oops")
    findings.take("d", 400, b'Traceback (most recent call last):\n  File "/x.py", line 3')
    found = findings.figures()
    assert (found["requests"], found["server_errors"], found["traces"]) == (4, 1, 1)
    assert found["examples"]["server_errors"] == ["c -> 500 oops"]
    claims = fuzz.claims_of([{**found, "ranks_after": False}], whole=False)
    assert [one["holds"] for one in claims] == [False, False, True, True, False]


def test_poisoned_models_look_right(artifact: Path, tmp_path: Path) -> None:
    case = load_golden(artifact / GOLDEN)[0]
    users = UserInputs(**{name: values[:1] for name, values in case.users.feeds().items()})
    candidates = case.candidates.reshape(-1, case.candidates.shape[-1])[:3].copy()
    author = Artifact.open(artifact).manifest.view.columns("candidate").index("author_id")
    guilty = candidates.copy()
    guilty[1, author] = 424_242
    for how in ("fails", "nan"):
        engine = Engine.load(poisoned(artifact, tmp_path / how, 424_242, how))
        (clean,), _ = engine.run([Piece(users, None, candidates)])
        assert np.isfinite(clean.probabilities).all()
        if how == "nan":
            (scored,), _ = engine.run([Piece(users, None, guilty)])
            assert np.isnan(scored.probabilities).all(1).tolist() == [False, True, False]
        else:
            with pytest.raises(Exception, match="out of data bounds"):
                engine.run([Piece(users, None, guilty)])


def test_spoilt_models_are_spoilt_in_one_way(artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="sha256"):
        Artifact.open(corrupted(artifact, tmp_path / "corrupt"))
    with pytest.raises(Exception, match="differ by nan"):
        Engine.load(all_nan(artifact, tmp_path / "nan"))
    assert "event_mood" in Artifact.open(incompatible(artifact, tmp_path / "other")).manifest.view.columns("video")


def test_parts_must_exist(artifact: Path) -> None:
    with pytest.raises(UnknownPartError, match="no part 'all'; there are redis, overload"):
        faults.run(artifact, "all", quick=True)
    with pytest.raises(UnknownPartError, match="there are openapi, bodies, wire"):
        fuzz.run(artifact, "all", quick=True)
    with pytest.raises(UnknownPartError, match="there are none, reloads, redis"):
        soak.run(artifact, 1, "all", quick=True)
