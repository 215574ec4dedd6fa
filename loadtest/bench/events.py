"""`farm bench events`: what becomes of events, and of rankings, when something fails while they come in.

Real processes: Valkey servers, `farm ingest --worker`, `farm serve`, and a sender that repeats what was refused.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from feature_store.events.log import EventLog
from feature_store.schema import widen
from feature_store.store import open_store
from loadtest.bench.event_faults import SCENARIOS, Place, Scenario, Stage
from loadtest.bench.event_processes import START_S, Asked, asking, running_sender, running_worker
from loadtest.bench.event_reference import Facts, StoredFacts, Verdict, judge, stored_facts
from loadtest.bench.event_sender import Plan, Sent
from loadtest.bench.event_traffic import EVENTS, Traffic
from loadtest.bench.parts import choose
from loadtest.process import running_service
from model.datasets.logs import prepare_logs
from model.datasets.prepared import Prepared
from model.datasets.simulator import simulate
from model.export import export_run
from model.figures import claim, report
from model.materialize import materialize
from model.train import train

EVENTS_PER_S = 2_000
PATIENCE_S = 25.0  # of the sender, after its last request
MERGED_S = 30.0  # for the workers, after the last request
_PAST_MS = 600_000  # views begin so long before they are sent
_ASKED_USERS = 100


@dataclass(frozen=True)
class Lengths:
    """Of a scenario."""

    quiet_s: float  # of traffic before the fault, and after it
    hold_s: float  # of a fault that is ended after a time
    most_s: float  # of traffic, however long the fault lasts


FULL, QUICK = Lengths(3.0, 5.0, 30.0), Lengths(1.0, 2.0, 15.0)


@dataclass(frozen=True)
class Model:
    """What is served, and the logs that are materialized."""

    artifact: Path
    prepared: Prepared


@dataclass(frozen=True)
class Course:
    """How a scenario went."""

    sent: Sent
    asked: Asked
    verdict: Verdict
    merged_s: float | None  # from the last acknowledgement until the log was merged; None: it never was
    told: dict[str, Any]  # by the fault


def run(only: str | None, quick: bool) -> dict[str, Any]:
    """All scenarios, or the one of a name.  UnknownPartError when there is none of that name."""
    names = choose(only, [scenario.name for scenario in SCENARIOS], kind="scenario")
    chosen = [scenario for scenario in SCENARIOS if scenario.name in names]
    lengths = QUICK if quick else FULL
    results, claims = {}, []
    with tempfile.TemporaryDirectory() as scratch:
        model = build_model(Path(scratch))
        for scenario in chosen:
            start = time.monotonic()
            course = play(scenario, model, lengths)
            results[scenario.name] = figures_of(course) | {"seconds": time.monotonic() - start}
            print(f"{scenario.text}: {results[scenario.name]}", file=sys.stderr, flush=True)
            claims += claims_of(scenario, course)
    settings = {"events_per_s": EVENTS_PER_S, "events_of_a_request": EVENTS, **asdict(lengths)}
    return report("events", settings, results, claims)


def build_model(folder: Path) -> Model:
    """A FARM of one epoch on a small simulation: it ranks as fast as a better one."""
    made = simulate(folder / "logs", users=300, days=5, seed=7)
    prepared = prepare_logs(folder / "logs", folder / "prepared", made.last_day)
    train(prepared, folder / "run", {"epochs": 1, "batch_size": 64, "learning_rate": 3e-3}, quiet=True)
    return Model(export_run(folder / "run", folder / "artifact").path, prepared)


def play(scenario: Scenario, model: Model, lengths: Lengths) -> Course:
    """One scenario.  Every process that it starts has ended when it returns or raises."""
    environment = scenario.environment
    with ExitStack() as stack:
        place = stack.enter_context(scenario.opened())
        asyncio.run(materialize(model.prepared, place.direct_url))
        before = dict(asyncio.run(_stored(place)))
        workers = [stack.enter_context(running_worker(place.url, environment)) for _ in range(scenario.workers)]
        serving = running_service(model.artifact, place.url, ready_within_s=START_S, cpus=None, **environment)
        service = stack.enter_context(serving)
        traffic = _traffic(model.prepared, lengths)
        plan = Plan(traffic, service.url if scenario.over_http else place.url, EVENTS_PER_S / EVENTS, PATIENCE_S)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        asking_now = asking(service.url, *_questions(model.prepared, traffic))
        with asking_now as asked, running_sender(plan, folder, environment) as sender:
            time.sleep(lengths.quiet_s)
            told = scenario.fault(Stage(place, workers, model.prepared.path, lengths.hold_s))
            time.sleep(lengths.quiet_s)
            sent = sender.finish()
            merged_s = asyncio.run(_merged(place, sent))
        stored = asyncio.run(_stored(place))
    return Course(sent, asked, _judged(traffic, sent, model.prepared, before, stored), merged_s, told)


def figures_of(course: Course) -> dict[str, Any]:
    """What the report says of a scenario."""
    sent, asked = course.sent, course.asked
    return {
        **asdict(course.verdict),
        "seconds_without_writes": sent.longest_gap_s(),
        "requests": len(sent.acknowledged),
        "traffic_s": sent.ended - sent.began,
        "events_per_s": course.verdict.sent / (sent.ended - sent.began),
        "sent_again": sent.tries - len(sent.acknowledged),
        "refusals": sent.refusals,
        "merged_after_s": course.merged_s,
        "rank_answers": asked.answers,
        "rank_degraded": asked.degraded,
        "rank_failures": len(asked.failures),
        "rank_failed_first": asked.failures[:1],
        "rank_slowest_s": asked.slowest_s,
        **course.told,
    }


def claims_of(scenario: Scenario, course: Course) -> list[dict[str, Any]]:
    """0 lost where that is claimed, 0 doubled, every ranking answered."""
    text, verdict = scenario.text, course.verdict
    claims = [
        claim(f"{text}: doubled", verdict.doubled, "<=", 0),
        claim(f"{text}: share of rankings answered", course.asked.share, ">=", 1.0),
    ]
    if scenario.loses_nothing:
        claims.insert(0, claim(f"{text}: acknowledged events lost", verdict.lost, "<=", 0))
    if scenario.refuses is not None:
        refused = course.sent.refusals.get(scenario.refuses, 0)
        claims.append(claim(f"{text}: requests refused with {scenario.refuses}", refused, ">", 0))
    return claims


def _traffic(prepared: Prepared, lengths: Lengths) -> Traffic:
    requests = round(lengths.most_s * EVENTS_PER_S / EVENTS)
    known = tuple(prepared.user_ids().tolist())
    return Traffic(seed=1, start_ms=int(1000 * time.time()) - _PAST_MS, requests=requests, known_users=known)


def _questions(prepared: Prepared, traffic: Traffic) -> tuple[list[int], list[int]]:
    """Users, of whom some have histories of the logs, and authors."""
    authors = sorted(set(widen(prepared.authors["author_id"][:]).tolist()))
    return [traffic.user(number) for number in range(_ASKED_USERS)], authors


async def _merged(place: Place, sent: Sent) -> float | None:
    """Wait until nothing in the log is left to merge; s since the last acknowledgement, None after MERGED_S."""
    async with open_store(place.direct_url) as store:
        log = EventLog.of(store)
        assert log is not None, "only stores with a log"
        gives_up = time.monotonic() + MERGED_S
        while sum((await log.lag()).values()):
            if time.monotonic() > gives_up:
                return None
            await asyncio.sleep(0.05)
    return time.time() - max((at for at in sent.acknowledged if at is not None), default=sent.began)


async def _stored(place: Place) -> StoredFacts:
    async with open_store(place.direct_url) as store:
        return await stored_facts(store)


def _judged(traffic: Traffic, sent: Sent, prepared: Prepared, before: Facts, stored: StoredFacts) -> Verdict:
    events = (
        (event, at is not None) for number, at in enumerate(sent.acknowledged) for event in traffic.request(number)
    )
    return judge(events, prepared.schema.behaviours, before, stored)
