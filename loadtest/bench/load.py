"""`farm bench load`: Locust's front end against one worker: objectives are met below its saturation, missed above."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from loadtest.bench.cores import pinned
from loadtest.bench.load_mix import Mix, write_mix
from loadtest.bench.service_lab import BenchError, Lab, Service, open_lab
from loadtest.bench.service_stores import AUTHORS
from loadtest.bench.store_data import author_ids, user_ids
from loadtest.bench.untrained import given_or_untrained
from loadtest.frontend.settings import PREFIX, LoadSettings, read_load_settings
from loadtest.load.run import Load, loading, run_load
from model.figures import claim, report

CALM, OVER = 0.7, 1.2  # of saturation

_CLIENTS = 8  # that saturate
_EVENT_CONNECTIONS = 16
_LOCUSTFILE = Path(__file__).parent.parent / "locustfile.py"
_START_S = 60.0  # of Locust, and its last answers
_OF_THE_GENERATOR = "share of arrivals begun in time"


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    users: int = 40_000
    bodies: int = 12_000
    rounds: int = 4  # of saturation
    seconds: float = 5.0  # of one
    locust_seconds: float = 40.0


QUICK = Sizes(users=3_000, bodies=4_000, rounds=2, seconds=2.0, locust_seconds=8.0)


def run(artifact: Path | None, html: Path, quick: bool) -> dict[str, Any]:
    """Both loads; without an artifact, of an untrained FARM (its speed is the same).  html: folder for reports."""
    sizes = QUICK if quick else Sizes()
    with given_or_untrained(artifact) as path:
        return measure(path, html, sizes)


def measure(artifact: Path, html: Path, sizes: Sizes) -> dict[str, Any]:
    """The report."""
    with open_lab(artifact, sizes.users) as lab:
        ids = _write_ids(lab)
        mix = write_mix(lab.folder, read_load_settings(ids=ids), sizes.bodies)
        service = lab.service("lmdb")
        saturation = _saturation(lab, service, mix, sizes)
        runs = {
            share: locust(lab, service, ids, html, share, saturation["per_second"], sizes) for share in (CALM, OVER)
        }
        settings = {"artifact": artifact.name, "authors": AUTHORS, "cores": asdict(lab.cores), **asdict(sizes)}
    found = {"saturation": saturation, "shares": runs}
    return report("load", settings, found, claims(found))


def claims(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Of both runs."""
    calm, over = found["shares"][CALM], found["shares"][OVER]
    wrong = [load["figures"]["wrong_answers"] for load in (calm, over)]
    begun = [load["figures"]["begun_in_time_share"] or 0.0 for load in (calm, over)]
    missed = [name for name in over["missed"] if name != _OF_THE_GENERATOR]
    return [
        claim(f"exit status of Locust at {CALM:.0%} of saturation", calm["exit_status"], "<=", 0),
        claim(f"exit status of Locust at {OVER:.0%} of saturation", over["exit_status"], ">=", 1),
        claim(f"objectives that the service missed at {OVER:.0%} of saturation", len(missed), ">=", 1),
        claim("wrong answers at both", sum(wrong), "<=", 0),
        claim("share of arrivals that Locust began in time, the lesser of both", min(begun), ">=", 0.99),
    ]


def _write_ids(lab: Lab) -> Path:
    path = lab.folder / "ids.json"
    path.write_text(json.dumps({"users": user_ids(lab.users).tolist(), "authors": author_ids(AUTHORS).tolist()}))
    return path


def _saturation(lab: Lab, service: Service, mix: Mix, sizes: Sizes) -> dict[str, Any]:
    """Rankings per second of Locust's mix in a closed loop, while events come as often as they belong to so many.

    How often that is, each round knows from the one before it.
    """
    found = [_closed(lab, service, mix, 0.0, sizes)]
    for _ in range(sizes.rounds):
        found.append(_closed(lab, service, mix, mix.events_per_ranking * found[-1], sizes))
    return {
        "without_events_per_second": found[0],
        "each_per_second": found[1:],
        "per_second": median(found[1:]),
        "events_requests_per_ranking": mix.events_per_ranking,
    }


def _closed(lab: Lab, service: Service, mix: Mix, events_rate: float, sizes: Sizes) -> float:
    """Rankings per second."""
    url, (first, first_events) = service.process.url, mix.next
    rankings = Load(f"{url}/rank", mix.rankings, _CLIENTS, sizes.seconds, first=first)
    if not events_rate:
        answered = run_load(rankings, lab.cores.others)
        mix.advance(answered.answered, 0)
        return answered.per_second
    seconds = sizes.seconds + rankings.warm_up_s + 1.0  # until the rankings are over
    events = Load(
        f"{url}/events", mix.events, _EVENT_CONNECTIONS, seconds, warm_up_s=0.0, rate=events_rate, first=first_events
    )
    with loading(events, lab.cores.others) as running:
        running.wait_begun()
        answered = run_load(rankings, lab.cores.others)
        running.stop()
        told = running.result()
    if told.errors or set(told.statuses) != {202}:
        raise BenchError(f"events: statuses {told.statuses}, {told.errors} requests without an answer")
    mix.advance(answered.answered, told.answered)
    return answered.per_second


def locust(
    lab: Lab, service: Service, ids: Path, html: Path, share: float, saturation: float, sizes: Sizes
) -> dict[str, Any]:
    """Locust at a share of saturation, on the core that the service has not: its exit status and its verdict."""
    verdict = lab.folder / f"load-{share:g}.json"
    page = html / f"load-{100 * share:.0f}.html"
    settings = read_load_settings(
        ids=ids, rate=share * saturation, seconds=sizes.locust_seconds, visible_ms=0, seed=1, report=verdict
    )
    words = ["--host", service.process.url, "--headless", "--only-summary", "--html", str(page)]
    start = time.monotonic()
    with pinned({lab.cores.others}):
        done = subprocess.run(
            [sys.executable, "-m", "locust", "-f", str(_LOCUSTFILE), *words],
            env=environment(settings),
            capture_output=True,
            text=True,
            timeout=sizes.locust_seconds + _START_S,
        )
    if not verdict.is_file():
        raise BenchError(f"Locust gave no verdict: {done.stderr.strip()[-2000:]}")
    found = json.loads(verdict.read_text())
    if found["problems"]:
        raise BenchError(f"Locust: {found['problems']}")
    print(f"{share:.0%} of saturation: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    return {
        "exit_status": done.returncode,
        "rate": settings.rate,
        "html": page.name,
        "missed": [objective["claim"] for objective in found["objectives"] if not objective["holds"]],
        "objectives": found["objectives"],
        "figures": found["figures"],
    }


def environment(settings: LoadSettings) -> dict[str, str]:
    """Of a Locust process: this one's, with these settings."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    given = settings.model_dump(mode="json", exclude_defaults=True)
    return {**own, **{PREFIX + name.upper(): str(value) for name, value in given.items()}}
