"""The bench of events under faults: its traffic, its reference, which must be able to fail, and one small scenario."""

from __future__ import annotations

import asyncio
import copy
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from feature_store.events.parse import parse_events
from feature_store.schema import default_schema
from feature_store.store import open_store
from loadtest.bench import events
from loadtest.bench.event_faults import SCENARIOS
from loadtest.bench.event_reference import Key, StoredFacts, Verdict, event_fact, join, judge, stored_facts
from loadtest.bench.event_sender import Plan, Sent
from loadtest.bench.event_traffic import EVENTS, LATER, VIEWS, Event, Traffic
from loadtest.bench.parts import UnknownPartError
from model.datasets.prepared import Prepared

NOW_MS = 1_760_000_000_000
TRAFFIC = Traffic(seed=3, start_ms=NOW_MS - 600_000, requests=40, known_users=(11, 12))
SCHEMA = default_schema()


def sent_events(traffic: Traffic = TRAFFIC) -> list[Event]:
    return [event for number in range(traffic.requests) for event in traffic.request(number)]


async def store_after(folder: Path, requests: list[list[Event]]) -> StoredFacts:
    """What is in a real store when these requests were merged, one after another."""
    async with open_store(f"lmdb://{folder / 'store'}", SCHEMA, create=True) as store:
        for request in requests:
            await store.apply(parse_events(request, SCHEMA, NOW_MS))
        return await stored_facts(store)


def judged(stored: StoredFacts, acknowledged: bool = True) -> Verdict:
    return judge([(event, acknowledged) for event in sent_events()], SCHEMA.behaviours, {}, stored)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> StoredFacts:
    """After all of TRAFFIC, last request first, each twice."""
    requests = [TRAFFIC.request(number) for number in reversed(range(TRAFFIC.requests)) for _ in range(2)]
    return asyncio.run(store_after(tmp_path_factory.mktemp("events"), requests))


def view_of(stored: StoredFacts) -> Key:
    return next(key for key, fact in stored if key[0] == "live" and "known_at" in fact)


def test_traffic_is_the_same_wherever_it_is_made() -> None:
    assert sent_events() == sent_events(replace(TRAFFIC))
    assert len(TRAFFIC.request(2 * LATER)) == EVENTS
    assert sent_events() != sent_events(replace(TRAFFIC, seed=4))


def test_the_parts_of_a_view_come_in_three_requests() -> None:
    requests: dict[int, list[int]] = defaultdict(list)
    for number in range(TRAFFIC.requests):
        for event in TRAFFIC.request(number):
            if "view_id" in event:
                requests[event["view_id"]].append(number)
    whole = [numbers for numbers in requests.values() if len(numbers) == 3]
    assert len(whole) == (TRAFFIC.requests - 2 * LATER) * VIEWS
    assert all(numbers == [first := numbers[0], first + LATER, first + 2 * LATER] for numbers in whole)


def test_no_user_has_more_views_than_a_store_keeps_in_progress() -> None:
    views = {(event["type"], event["user_id"], event["view_id"]) for event in sent_events() if "view_id" in event}
    of_users = Counter((kind, user) for kind, user, _ in views)
    assert max(of_users.values()) <= SCHEMA.history_spare
    assert {user for _, user in of_users} > {11, 12}


def test_a_store_that_merged_everything_holds_the_reference(stored: StoredFacts) -> None:
    verdict = judged(stored)
    assert (verdict.sent, verdict.acknowledged, verdict.applied) == (len(sent_events()),) * 3
    assert (verdict.lost, verdict.doubled, verdict.examples) == (0, 0, ())


def test_a_lost_view_is_found(stored: StoredFacts) -> None:
    gone = view_of(stored)
    verdict = judged([(key, fact) for key, fact in stored if key != gone])
    assert (verdict.lost, verdict.applied) == (3, verdict.sent - 3)
    assert str(gone) in verdict.examples[0]


@pytest.mark.parametrize("field", ["known_at", "play_time", "behaviours", "author_id"])
def test_a_lost_part_of_a_view_is_found(stored: StoredFacts, field: str) -> None:
    worse = copy.deepcopy(stored)
    del dict(worse)[view_of(stored)][field]
    verdict = judged(worse)
    assert 1 <= verdict.lost <= 2
    assert verdict.doubled == 0


@pytest.mark.parametrize("kind", ["user", "author"])
def test_a_lost_update_is_found(stored: StoredFacts, kind: str) -> None:
    worse = copy.deepcopy(stored)
    chosen = next(fact for key, fact in worse if key[0] == kind)
    chosen["updated_at"] -= 1
    assert judged(worse).lost == 1


def test_what_was_not_acknowledged_may_be_missing_or_there(stored: StoredFacts) -> None:
    assert judged([], acknowledged=False).lost == 0
    assert judged(stored, acknowledged=False).doubled == 0


def test_a_view_that_is_stored_twice_is_found(stored: StoredFacts) -> None:
    twice = next(row for row in stored if row[0] == view_of(stored))
    assert judged([*stored, twice]).doubled == 1


@pytest.mark.parametrize("change", [{"play_time": 1}, {"behaviours": 1 << 7, "play_time": 0}, {"known_at": 1}])
def test_a_value_that_was_added_twice_is_found(stored: StoredFacts, change: dict[str, int]) -> None:
    worse = copy.deepcopy(stored)
    fact = dict(worse)[view_of(stored)]
    fact["behaviours"] &= ~(1 << 7)
    for name, more in change.items():
        fact[name] += more
    verdict = judged(worse)
    assert verdict.doubled == 1
    assert "doubled" in verdict.examples[-1]


def test_a_view_that_nobody_sent_is_found(stored: StoredFacts) -> None:
    kind, user, view = view_of(stored)
    assert judged([*stored, ((kind, user, view + 10**6), {"event_time": NOW_MS})]).doubled == 1


def test_what_was_stored_before_is_no_fault(stored: StoredFacts) -> None:
    old: tuple[Key, dict[str, int]] = (("video", 11, 1), {"event_time": NOW_MS, "play_time": 5})
    events_sent = [(event, True) for event in sent_events()]
    assert judge(events_sent, SCHEMA.behaviours, dict([old]), [*stored, old]).doubled == 0


def test_facts_join_like_views() -> None:
    begun = {"type": "live_view", "user_id": 1, "view_id": 2, "event_time": 50, "behaviours": ["like"], "play_time": 7}
    ended = {**begun, "event_time": 40, "known_at": 90, "behaviours": ["click"], "play_time": None}
    (key, one), (_, other) = (event_fact(event, SCHEMA.behaviours) for event in (begun, ended))
    assert key == ("live", 1, 2)
    joined = {"event_time": 40, "known_at": 90, "play_time": 7, "behaviours": 0b1001}
    assert join("live", one, other) == join("live", other, one) == joined


def test_the_time_without_writes_is_the_longest_between_two(tmp_path: Path) -> None:
    sent = Sent(began=100.0, acknowledged=[100.25, None, 103.5, 101.0], tries=5, refusals={"LogBusy": 1})
    sent.save(tmp_path / "sent")
    assert Sent.load(tmp_path / "sent") == sent
    assert sent.longest_gap_s() == 2.5
    plan = Plan(TRAFFIC, "redis://127.0.0.1:1", 80.0, 5.0)
    plan.save(tmp_path / "plan")
    assert Plan.load(tmp_path / "plan") == plan


def test_a_scenario_of_another_name_is_refused() -> None:
    with pytest.raises(UnknownPartError, match="no scenario 'nothing'; there are worker, master, "):
        events.run("nothing", quick=True)


def test_memory_is_reached_and_nothing_is_lost(artifact: Path, prepared: Prepared) -> None:
    scenario = next(one for one in SCENARIOS if one.name == "memory")
    course = events.play(scenario, events.Model(artifact, prepared), events.Lengths(0.5, 1.5, 5.0))
    figures: dict[str, Any] = events.figures_of(course)
    assert figures["acknowledged"] == figures["applied"] == figures["sent"] > 3000
    assert figures["rank_answers"] > 0
    assert figures["seconds_without_writes"] > 0.3
    assert [claim for claim in events.claims_of(scenario, course) if not claim["holds"]] == []
