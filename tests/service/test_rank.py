"""Good requests: the answer is complete, sorted, and what the engine and the formula give."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from service_facts import Facts

from feature_store.matrices import candidate_matrix, user_inputs
from feature_store.schema import MISSING
from feature_store.store import open_store
from model.artifact.engine import Engine
from model.artifact.formula import Formula
from service.client import RankClient, RankError
from service.ranking import Stopwatch
from service.scoring.scorer import Score

UNKNOWN = 2**62 + 1


def rank(http: httpx.Client, facts: Facts, candidates: list[object], **more: object) -> dict[str, object]:
    request = {"user_id": facts.users[0], "candidates": candidates, "now_ms": facts.now_ms, **more}
    response = http.post("/rank", json=request)
    assert response.status_code == 200, response.text
    return response.json()


def scores(answer: dict[str, object]) -> dict[object, float]:
    return {row["author_id"]: row["score"] for row in answer["ranking"]}


def test_answer_is_complete_and_sorted(http: httpx.Client, facts: Facts) -> None:
    answer = rank(http, facts, facts.authors[:60], page=1)
    version = http.get("/version").json()
    assert set(answer) == {"request_id", "model_version", "ranking", "degraded", "timing_ms"}
    assert answer["model_version"] == version["model_version"]
    assert answer["degraded"] == []
    assert set(answer["timing_ms"]) == {"store", "queue", "user_tower", "candidate_tower", "total"}
    assert answer["timing_ms"]["total"] >= answer["timing_ms"]["candidate_tower"] > 0
    rows = answer["ranking"]
    assert sorted(row["author_id"] for row in rows) == facts.authors[:60]
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    for row in rows:
        assert list(row["xtr"]) == version["tasks"]
        assert all(0 <= p <= 1 for p in row["xtr"].values())


def test_score_is_the_engines_and_the_formulas(
    http: httpx.Client, facts: Facts, artifact: Path, store_url: str
) -> None:
    authors = np.array(facts.authors[:50])
    engine = Engine.load(artifact, check=False)

    async def read():
        async with open_store(store_url) as store:
            return await store.read(facts.users[0], authors)

    found = asyncio.run(read())
    state = engine.user_state(user_inputs(engine.view, found.user, facts.users[0], {"page": 1}, facts.now_ms))
    candidates, _ = candidate_matrix(engine.view, authors, np.full(len(authors), MISSING), found.authors)
    probabilities = engine.calibration.apply(engine.score_user(state, candidates))
    expected = Formula().score(probabilities, engine.tasks)
    answer = rank(http, facts, authors.tolist(), page=1)
    by_author = {row["author_id"]: row for row in answer["ranking"]}
    served = [by_author[author]["score"] for author in authors.tolist()]
    xtr = [[by_author[author]["xtr"][task] for task in engine.tasks] for author in authors.tolist()]
    np.testing.assert_allclose(served, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(xtr, probabilities, rtol=0, atol=1e-6)
    order = np.array(expected)[np.argsort(-expected, kind="stable")]
    np.testing.assert_allclose([row["score"] for row in answer["ranking"]], order, rtol=0, atol=1e-6)


def test_top_k_is_the_head_of_the_whole(http: httpx.Client, facts: Facts) -> None:
    whole = rank(http, facts, facts.authors[:40])["ranking"]
    assert rank(http, facts, facts.authors[:40], top_k=7)["ranking"] == whole[:7]
    assert rank(http, facts, facts.authors[:40], top_k=2000)["ranking"] == whole
    assert len(rank(http, facts, facts.authors[:1], top_k=1)["ranking"]) == 1


def test_neither_order_nor_splitting_changes_a_score(http: httpx.Client, facts: Facts) -> None:
    authors = facts.authors[:90]
    whole = scores(rank(http, facts, authors))
    turned = scores(rank(http, facts, authors[::-1]))
    split = scores(rank(http, facts, authors[:1])) | scores(rank(http, facts, authors[1:37]))
    split |= scores(rank(http, facts, authors[37:]))
    for author in authors:
        assert turned[author] == pytest.approx(whole[author], rel=0, abs=1e-6)
        assert split[author] == pytest.approx(whole[author], rel=0, abs=1e-6)


def test_two_thousand_candidates(http: httpx.Client, facts: Facts) -> None:
    authors = [*facts.authors, *range(2**61, 2**61 + 2000)][:2000]
    rows = rank(http, facts, authors)["ranking"]
    assert {int(row["author_id"]) for row in rows} == set(authors)


def test_ids_beyond_2_to_the_53_are_strings(http: httpx.Client, facts: Facts) -> None:
    exact, beyond = 2**53, 2**53 + 1
    candidates = [exact, str(beyond), -beyond, {"author_id": "12", "live_id": str(beyond)}, str(2**63 - 1), 0, "-7"]
    rows = rank(http, facts, candidates, user_id=str(2**63 - 1))["ranking"]
    assert {row["author_id"] for row in rows} == {exact, str(beyond), str(-beyond), 12, str(2**63 - 1), 0, -7}
    assert next(row["live_id"] for row in rows if row["author_id"] == 12) == str(beyond)


def test_live_rooms(http: httpx.Client, facts: Facts) -> None:
    author = facts.authors[0]
    rows = rank(http, facts, [{"author_id": author, "live_id": 5}, {"author_id": author, "live_id": 6}, UNKNOWN])
    assert {(row["author_id"], row["live_id"]) for row in rows["ranking"]} == {
        (author, 5),
        (author, 6),
        (str(UNKNOWN), None),
    }
    assert rows["degraded"] == ["unknown_authors"]


def test_an_unknown_user_is_ranked_for_without_history(http: httpx.Client, facts: Facts) -> None:
    assert rank(http, facts, facts.authors[:3], user_id=UNKNOWN)["degraded"] == ["no_history"]
    assert rank(http, facts, [UNKNOWN], user_id=UNKNOWN)["degraded"] == ["no_history", "unknown_authors"]


def test_a_history_that_is_not_known_yet_is_not_read(http: httpx.Client, facts: Facts) -> None:
    assert rank(http, facts, facts.authors[:3], now_ms=946_684_800_000)["degraded"] == ["no_history"]


def test_ties_keep_the_order_of_the_request(http: httpx.Client, facts: Facts) -> None:
    rows = rank(http, facts, [{"author_id": UNKNOWN + i} for i in range(30)])["ranking"]
    sent = {str(UNKNOWN + i): i for i in range(30)}
    places = [(-row["score"], sent[row["author_id"]]) for row in rows]
    assert places == sorted(places)


def test_null_where_optional_is_absent(http: httpx.Client, facts: Facts) -> None:
    plain = rank(http, facts, facts.authors[:5])
    nulls = rank(
        http, facts, [{"author_id": author, "live_id": None} for author in facts.authors[:5]], page=None, top_k=None
    )
    assert scores(plain) == scores(nulls)
    assert http.post("/rank", json={"user_id": 1, "candidates": [1], "now_ms": None}).status_code == 200


def test_request_id_is_the_callers_when_it_is_sane(http: httpx.Client) -> None:
    body = {"user_id": 1, "candidates": [1]}
    for given, kept in (("abc-123.Z", True), ("a b", False), ("x" * 129, False), ("", False)):
        response = http.post("/rank", json=body, headers={"X-Request-Id": given})
        assert response.headers["x-request-id"] == response.json()["request_id"]
        assert (response.json()["request_id"] == given) == kept
    assert http.get("/nowhere", headers={"X-Request-Id": "q1"}).json()["request_id"] == "q1"


def test_health_and_version(http: httpx.Client) -> None:
    assert http.get("/livez").json() == {"status": "alive"}
    assert http.get("/readyz").json() == {"status": "ready"}
    version = http.get("/version").json()
    assert (version["provider"], version["arch"]) == ("cpu", "farm")
    assert version["record_schema"]["ids"] == "integer"


def test_the_event_loop_answers_while_the_engine_works(http: httpx.Client, service_url: str, facts: Facts) -> None:
    slow: list[float] = []
    fast: list[float] = []

    def keep_busy() -> None:
        authors = [*facts.authors, *range(2**61, 2**61 + 2000)][:2000]
        with RankClient(service_url) as client:
            for _ in range(15):
                start = time.perf_counter()
                client.rank(facts.users[0], authors, now_ms=facts.now_ms)
                slow.append(time.perf_counter() - start)

    busy = [threading.Thread(target=keep_busy) for _ in range(2)]
    for thread in busy:
        thread.start()
    while any(thread.is_alive() for thread in busy):
        start = time.perf_counter()
        assert http.get("/livez").status_code == 200
        fast.append(time.perf_counter() - start)
    assert statistics.median(fast) < statistics.median(slow) / 2


def test_client(service_url: str, facts: Facts) -> None:
    with RankClient(service_url) as client:
        assert client.ready()
        answer = client.rank(facts.users[0], [facts.authors[0], {"author_id": 5, "live_id": 6}], 1, 2, facts.now_ms)
        assert len(answer.ranking) == 2
        with pytest.raises(RankError, match=r"422 Invalid request: candidates\[0\]: an id must be") as refused:
            client.rank(1, ["abc"])
        assert refused.value.status == 422
        assert refused.value.problem["errors"][0]["field"] == "candidates[0]"
        assert client.rank(1, [1]).ranking[0].author_id == 1
    with RankClient("http://127.0.0.1:9") as absent:
        assert not absent.ready()
        with pytest.raises(RankError, match=r"127\.0\.0\.1:9"):
            absent.rank(1, [1])
    with pytest.raises(RankError, match="no URL"):
        RankClient("ftp://x")


def test_the_time_around_the_engine_is_neither_the_queues_nor_a_towers() -> None:
    watch = Stopwatch()
    watch.lap("store")
    time.sleep(0.02)
    watch.lap_scored(Score(np.empty((1, 1), np.float32), 0.001, 0.002, 0.004, kept=False))
    shown = watch.timing_ms()
    assert (shown["queue"], shown["user_tower"], shown["candidate_tower"]) == (1.0, 2.0, 4.0)
    assert watch.seconds["hand_over"] >= 0.02 - 0.007
    assert 1000 * sum(watch.seconds.values()) <= shown["total"] + 0.001
