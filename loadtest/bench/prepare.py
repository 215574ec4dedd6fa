"""`farm bench prepare`: time and peak memory of preparing logs, in a process of its own that may use two cores."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from model.datasets.log_tables import scan_table
from model.datasets.logs import FORMATS, prepare_logs, read_meta
from model.datasets.source import local_day
from model.figures import claim, report

CORES = 2
DAYS = 8
VIEWS_A_DAY = 52  # of a simulated user, on average
QUICK_EVENTS = 300_000
GOAL_EVENTS = 50_000_000
GOAL_S = 360.0
GOAL_GIB = 6.0


def run(events: int, data: Path | None, quick: bool) -> dict[str, Any]:
    """Prepare the logs in `data`, or else about `events` simulated events.

    The memory is the greatest resident set of the process, what it maps of files included.
    """
    with tempfile.TemporaryDirectory() as scratch:
        logs, simulated = (data, {}) if data else _simulate(Path(scratch) / "logs", QUICK_EVENTS if quick else events)
        figures = _prepare(logs, Path(scratch) / "prepared") | simulated
    scaled = figures["seconds"] * GOAL_EVENTS / figures["events"]
    claims = [
        claim(f"{figures['events']:,} events: peak memory of the process, GiB", figures["peak_gib"], "<=", GOAL_GIB),
        claim(f"{figures['events']:,} events: seconds, scaled to {GOAL_EVENTS:,}", scaled, "<=", GOAL_S),
    ]
    return report("prepare", {"cores": CORES, "simulated": data is None}, figures, claims)


def _simulate(out: Path, events: int) -> tuple[Path, dict[str, float]]:
    from model.datasets.simulator import simulate

    start = time.perf_counter()
    made = simulate(out, users=max(1, events // (VIEWS_A_DAY * DAYS)), days=DAYS, seed=1)
    return out, {"simulated_events_per_s": sum(made.views.values()) / (time.perf_counter() - start)}


def _prepare(logs: Path, out: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "loadtest.bench.prepare", str(logs), str(out), str(_last_day(logs))]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    figures: dict[str, Any] = json.loads(done.stdout)
    sizes = {"input_bytes": _bytes(logs), "output_bytes": _bytes(out)}
    return figures | sizes | {"events_per_s": figures["events"] / figures["seconds"]}


def _last_day(logs: Path) -> date:
    """The last local day with a live view, to test from."""
    meta = read_meta(logs)
    live = scan_table(logs, "live_events", FORMATS["live_events"], meta.string_ids, "skip").rows
    asked = "request_time" if "request_time" in live.collect_schema() else "event_time"
    last: date = live.select(local_day(asked, meta.utc_offset_s).max()).collect(engine="streaming").item()
    return last


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _main(logs: str, out: str, test_from: str) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    start = time.perf_counter()
    counts = prepare_logs(logs, out, date.fromisoformat(test_from)).info.counts
    seconds = time.perf_counter() - start
    events = counts["video_events"] + counts["live_events"]
    print(json.dumps({"events": events, "seconds": seconds, "peak_gib": _peak_gib()}))


def _peak_gib() -> float:
    """Linux counts the memory of the parent, before the program began, into ru_maxrss, and not into VmHWM."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    peaks = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
    return (peaks[0] if peaks else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 2**20


if __name__ == "__main__":
    _main(*sys.argv[1:])
