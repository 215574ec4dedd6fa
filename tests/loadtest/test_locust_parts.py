"""The parts of Locust's front end: settings, visitors, their events, checks of answers, arrivals, objectives."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest

from feature_store.events.parse import parse_events
from feature_store.schema import default_schema
from loadtest.bench.load import CALM, OVER, claims, environment
from loadtest.bench.load_mix import write_mix
from loadtest.frontend.checks import Known, wrong
from loadtest.frontend.crowd import Ask, Clock, Crowd, Visit
from loadtest.frontend.habits import RETURNS, WATCHES, Habits, View
from loadtest.frontend.objectives import judge
from loadtest.frontend.profile import SHAPES, Stage, arrivals, counts_of, level_at, stages_of
from loadtest.frontend.settings import LoadSettings, read_load_settings
from loadtest.frontend.tally import EVENTS, RANK, Tally
from service.contract import RankAnswer

TASKS = ("ctr", "etr")
KNOWN = Known(frozenset({"m1"}), TASKS)
BIG = 2**53 + 1
ASKED = Ask(5, [3, BIG, 9], page=1, now_ms=5_000, known_at_ms=4_000)


def answer() -> dict[str, Any]:
    """A right one, to ASKED."""
    rows = [(9, 0.9), (str(BIG), 0.5), (3, 0.5)]
    ages = {"events": 1, "stored": 1, "newest_age_ms": 1_000}
    return {
        "request_id": "r",
        "model_version": "m1",
        "ranking": [
            {"author_id": author, "live_id": None, "score": score, "xtr": {"ctr": 0.0, "etr": 1.0}}
            for author, score in rows
        ],
        "degraded": ["unknown_authors"],
        "timing_ms": dict.fromkeys(("store", "queue", "user_tower", "candidate_tower", "total"), 0.1),
        "debug": {"user": {"known": True, "version": 2}, "video": ages, "live": ages},
    }


def fault(change: Callable[[dict[str, Any]], Any], asked: Ask = ASKED) -> str | None:
    told = copy.deepcopy(answer())
    change(told)
    return wrong(asked, RankAnswer.model_validate(told), KNOWN)


def test_a_right_answer_has_no_fault() -> None:
    assert fault(lambda told: None) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda told: told["ranking"].pop(), "not as many authors"),
        (lambda told: told["ranking"][0].update(author_id=3), "not those that were asked for"),
        (lambda told: told["ranking"][0].update(author_id=4), "not those that were asked for"),
        (lambda told: told["ranking"].reverse(), "not sorted"),
        (lambda told: told["ranking"][0].update(score=float("nan")), "a score is no number"),
        (lambda told: told["ranking"][2]["xtr"].update(etr=1.0000001), "outside 0..1"),
        (lambda told: told["ranking"][2]["xtr"].update(ctr=-1e-9), "outside 0..1"),
        (lambda told: told["ranking"][2]["xtr"].update(ctr=float("nan")), "outside 0..1"),
        (lambda told: told["ranking"][1]["xtr"].pop("etr"), "tasks are not those"),
        (lambda told: told["ranking"][1]["xtr"].update(ltr=0.5), "tasks are not those"),
        (lambda told: told.update(degraded=["tired"]), "'tired' is no word"),
        (lambda told: told.update(model_version="m2"), "m2 is none of those"),
        (lambda told: told["debug"]["live"].update(newest_age_ms=1_001), "a view is not known"),
        (lambda told: told["debug"]["live"].update(newest_age_ms=None), "a view is not known"),
        (lambda told: told.pop("debug"), "no `debug`"),
    ],
    ids=lambda value: value.split()[-1] if isinstance(value, str) else "",
)
def test_a_wrong_answer_is_noticed(change: Callable[[dict[str, Any]], Any], message: str) -> None:
    found = fault(change)
    assert found is not None
    assert message in found


def test_freshness_is_asked_of_answers_that_had_the_store_only() -> None:
    def stale(told: dict[str, Any]) -> None:
        told["debug"]["live"]["newest_age_ms"] = 9_000

    assert fault(lambda told: (stale(told), told.update(degraded=["stale_history"]))) is None
    assert fault(stale, replace(ASKED, known_at_ms=None)) is None


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_LOAD_RATE", "40.5")
    monkeypatch.setenv("FARM_LOAD_CANDIDATES", "50:1,1000:3")
    monkeypatch.setenv("FARM_LOAD_AUTHORS", "7-9")
    settings = read_load_settings()
    assert (settings.rate, settings.candidate_shares) == (40.5, {50: 1, 1000: 3})
    assert settings.known_ids()[1] == [7, 8, 9]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("FARM_LOAD_USERS", "9-3", "FARM_LOAD_USERS: must be a range of ids, such as 0-999"),
        ("FARM_LOAD_CANDIDATES", "50", "FARM_LOAD_CANDIDATES: must be counts from 1 to 2000 and their shares"),
        ("FARM_LOAD_CANDIDATES", "2001:1", "FARM_LOAD_CANDIDATES: must be counts from 1 to 2000"),
        ("FARM_LOAD_RATE", "0", "FARM_LOAD_RATE: Input should be greater than 0"),
        ("FARM_LOAD_SHAPE", "wave", "FARM_LOAD_SHAPE: Input should be"),
        ("FARM_LOAD_RATES", "3", "FARM_LOAD_RATES: there is no such setting; there are FARM_LOAD_ARRIVALS"),
    ],
)
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        read_load_settings()


def test_a_shape_to_choose_needs_viewers() -> None:
    with pytest.raises(ValueError, match="FARM_LOAD_SHAPE: choose is for viewers"):
        read_load_settings(rate=3.0, shape="choose")


def test_ids_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "ids.json"
    path.write_text(json.dumps({"users": ["ann"], "authors": [2**60]}))
    assert LoadSettings(ids=path).known_ids() == (["ann"], [2**60])
    path.write_text('{"users": [1]}')
    with pytest.raises(ValueError, match=r"FARM_LOAD_IDS: must be a JSON file .*'authors'"):
        LoadSettings(ids=path).known_ids()


def crowd(**given: Any) -> Crowd:
    return Crowd(read_load_settings(**given), Random(3))


def test_users_and_authors_follow_zipf() -> None:
    found = crowd(users="0-999", authors="0-99", candidates="10:1")
    users = Counter(found.visit().user for _ in range(10_000))
    (_, most), (_, second) = users.most_common(2)
    share = 1 / sum(1 / rank for rank in range(1, 1001))
    assert most / 10_000 == pytest.approx(share, rel=0.15)
    assert second / most == pytest.approx(0.5, abs=0.12)
    assert crowd(users="0-999").visit() == crowd(users="0-999").visit()
    authors = Counter(author for _ in range(2_000) for author in found.candidates())
    assert len(authors) > 90
    assert authors.most_common(1)[0][1] > 3 * min(authors.values())


def test_candidates_are_distinct_and_as_many_as_told() -> None:
    found = crowd(authors="0-2999", candidates="50:1,1000:3")
    lists = [found.candidates() for _ in range(400)]
    assert all(len(set(authors)) == len(authors) for authors in lists)
    counts = Counter(map(len, lists))
    assert set(counts) == {50, 1000}
    assert counts[1000] / 400 == pytest.approx(0.75, abs=0.08)
    assert len(crowd(authors="0-29").candidates()) == 30  # all there are


def views(count: int) -> list[View | None]:
    habits = Habits(Random(4))
    return [habits.view([1, 2, 3]) for _ in range(count)]


def test_people_watch_return_and_act_at_their_rates() -> None:
    found = views(20_000)
    watched = [view for view in found if view is not None]
    assert len(watched) / len(found) == pytest.approx(WATCHES, abs=0.02)
    assert sum(view.returns for view in watched) / len(watched) == pytest.approx(RETURNS, abs=0.02)
    likes = sum("like" in view.acts for view in watched) / sum("effective_view" in view.acts for view in watched)
    assert likes == pytest.approx(0.04, abs=0.01)
    assert sorted(view.play_ms for view in watched)[len(watched) // 2] == pytest.approx(8_000, rel=0.1)
    assert sum(len(view.videos) for view in watched) / len(watched) == pytest.approx(2.0, abs=0.1)
    assert {view.author for view in watched} == {1, 2, 3}


def test_events_are_what_the_service_takes() -> None:
    habits, now_ms = Habits(Random(5)), 1_760_000_000_000
    view = next(view for view in iter(lambda: habits.view([7]), 0) if view is not None and view.videos)
    visit = Visit(user=17, page=2)
    events = habits.events(visit, view, now_ms)
    batch = parse_events(events, default_schema(), now_ms)
    assert batch.live_users.tolist() == [17]
    (live,) = batch.live
    assert live["event_time"] + live["known_after"] == now_ms
    assert (live["author_id"], live["play_time"], live["page"]) == (7, view.play_ms, 2)
    assert len(batch.video) == len(view.videos)
    assert len({event["view_id"] for event in events}) == len(events)


def test_an_old_clock_goes_on() -> None:
    clock = Clock(1_000_000)
    assert 1_000_000 <= clock.now_ms() < 1_060_000


def test_arrivals_come_exactly_when_the_stages_say() -> None:
    stages = (Stage(1.0, 0.5), Stage(0.5, 0.0), Stage(1.0, 1.0))
    found = list(arrivals(stages, 10.0, counts_of("constant", 0, 1, Random(0))))
    assert found == pytest.approx([0.2 * n for n in range(5)] + [1.5 + 0.1 * n for n in range(10)])


def test_processes_share_the_arrivals_of_one() -> None:
    def of(number: int, processes: int) -> list[float]:
        stages = stages_of("spike", 12.0)
        return list(arrivals(stages, 20.0, counts_of("constant", number, processes, Random(0))))

    assert sorted(of(0, 3) + of(1, 3) + of(2, 3)) == pytest.approx(of(0, 1))
    assert len(of(0, 1)) == pytest.approx(12.0 * 20 * (0.8 * 0.3 + 0.2), abs=1)


def test_poisson_arrivals_have_the_rate_and_the_spread() -> None:
    endless = arrivals(SHAPES["constant"], 50.0, counts_of("poisson", 1, 2, Random(6)))
    found = list(islice(endless, 5_000))
    gaps = [later - earlier for earlier, later in pairwise(found)]
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(2 / 50.0, rel=0.05)
    assert (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5 == pytest.approx(mean, rel=0.1)


def test_shapes_are_as_long_as_told() -> None:
    assert stages_of("soak", 60.0) == (Stage(60.0, 1.0),)
    assert sum(stage.seconds for stage in stages_of("step", 10.0)) == pytest.approx(10.0)
    assert [level_at(stages_of("spike", 10.0), at) for at in (0.0, 3.9, 4.1, 6.1, 10.1)] == [0.3, 0.3, 1.0, 0.3, None]
    assert level_at(SHAPES["constant"], 1e9) == 1.0


def good_tally() -> Tally:
    tally = Tally(asked=1_000)
    tally.ms[RANK] += [float(ms) for ms in range(1, 101)] * 10
    tally.ms[EVENTS] += [5.0] * 100
    tally.late_ms += [1.0] * 1_000
    return tally


WIDE = {"max_p50_ms": 50, "max_p95_ms": 95, "max_p99_ms": 99, "rate": 10.0}


def test_objectives_are_met_at_their_bounds() -> None:
    verdict = judge(good_tally(), read_load_settings(**WIDE))
    assert verdict.met, verdict.lines()
    assert verdict.lines()[0] == "met    rankings: p50, ms: 50 <= 50"
    assert len(verdict.lines()) == 7


@pytest.mark.parametrize(
    ("given", "counted", "line"),
    [
        ({"max_p50_ms": 49.9}, {}, "MISSED rankings: p50, ms: 50 <= 49.9"),
        ({"max_p99_ms": 98}, {}, "MISSED rankings: p99, ms: 99 <= 98"),
        ({}, {"errors": Counter({"/rank: 503": 2})}, "MISSED share of requests refused, failed or not answered: 0.00"),
        ({}, {"degraded_answers": 11}, "MISSED share of rankings degraded: 0.011 <= 0.01"),
        ({}, {"wrong": Counter({"not sorted by score": 1})}, "MISSED wrong answers: 1 <= 0"),
        ({}, {"late_ms": [51.0] * 11}, "MISSED share of arrivals begun in time: 0.989 >= 0.99"),
        ({}, {"never_begun": 11}, "MISSED share of arrivals begun in time: 0.989 >= 0.99"),
        ({}, {"problems": ["no service"]}, "not measured: no service"),
    ],
    ids=["p50", "p99", "errors", "degraded", "wrong", "late", "never", "problem"],
)
def test_each_objective_can_be_missed(given: dict[str, Any], counted: dict[str, Any], line: str) -> None:
    verdict = judge(replace(good_tally(), **counted), read_load_settings(**{**WIDE, **given}))
    assert not verdict.met
    assert next(found for found in verdict.lines() if not found.startswith("met")).startswith(line)


def test_nothing_measured_is_not_met() -> None:
    verdict = judge(Tally(), read_load_settings())
    assert not verdict.met
    assert verdict.lines()[0] == "MISSED rankings: p50, ms: none <= 20"


def test_tallies_of_processes_add_up() -> None:
    whole, part = good_tally(), good_tally()
    part.wrong["x"], part.degraded["no_history"], part.cpu_shares = 2, 3, [0.5]
    whole.add(json.loads(json.dumps(vars(part))))
    assert whole.asked == len(whole.late_ms) == len(whole.ms[RANK]) == 2_000
    assert (whole.wrong["x"], whole.degraded["no_history"], whole.cpu_shares) == (2, 3, [0.5])


def test_the_bench_sends_the_mix_that_locust_sends(tmp_path: Path) -> None:
    mix = write_mix(tmp_path, read_load_settings(candidates="50:1,200:1", authors="0-999"), 3_000)
    rankings = [json.loads(line) for line in mix.rankings.read_bytes().splitlines()]
    assert Counter(len(body["candidates"]) for body in rankings)[50] / 3_000 == pytest.approx(0.5, abs=0.05)
    assert mix.events_per_ranking == pytest.approx(WATCHES, abs=0.04)
    again = [body for body in rankings if body.get("debug")]
    assert len(again) / (3_000 - 1_200) == pytest.approx(WATCHES * RETURNS, abs=0.06)
    events = [event for line in mix.events.read_bytes().splitlines() for event in json.loads(line)["events"]]
    assert len({event["view_id"] for event in events}) == len(events)
    mix.advance(2_999, 0)
    mix.advance(2, 1)
    assert mix.next == (1, 1)


def test_settings_go_to_a_process_and_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = read_load_settings(rate=33.3, events=False, report=tmp_path / "r.json", seed=1)
    monkeypatch.setenv("FARM_LOAD_SHAPE", "soak")
    found = environment(given)
    monkeypatch.delenv("FARM_LOAD_SHAPE")
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    assert read_load_settings() == given


def test_the_bench_claims_both_exit_codes() -> None:
    figures = {"wrong_answers": 0, "begun_in_time_share": 1.0}
    calm = {"exit_status": 0, "missed": [], "figures": figures}
    over = {"exit_status": 1, "missed": ["rankings: p99, ms"], "figures": figures}
    assert all(claim["holds"] for claim in claims({"shares": {CALM: calm, OVER: over}}))
    assert not claims({"shares": {CALM: over, OVER: over}})[0]["holds"]
    assert not claims({"shares": {CALM: calm, OVER: calm}})[1]["holds"]
    tired = {**over, "missed": ["share of arrivals begun in time"]}  # then Locust was too slow, not the service
    assert not claims({"shares": {CALM: calm, OVER: tired}})[2]["holds"]
