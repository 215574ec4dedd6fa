"""Metrics of several processes as one: totals that survive their processes, gauges that do not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from feature_store.cells import FOLDER
from service.scrape import Scrape

COUNT = """
import os, sys
from prometheus_client import Counter, Gauge, Histogram
n = int(sys.argv[1])
Counter("answers_total", "", ["route"]).labels("/rank").inc(n)
seconds = Histogram("seconds", "", buckets=(0.1, 1))
for _ in range(n):
    seconds.observe(0.5)
Gauge("kept", "", multiprocess_mode="livesum").set(n)
Gauge("model", "", ["version"], multiprocess_mode="mostrecent").labels(f"v{n}").set(1)
print(os.getpid())
"""


def counted(folder: Path, count: int) -> int:
    """The id of a process that has counted so much, and ended."""
    environment = {**os.environ, FOLDER: str(folder)}
    command = [sys.executable, "-c", COUNT, str(count)]
    return int(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


def samples(scrape: Scrape) -> dict[str, float]:
    """By name and label values."""
    families = text_string_to_metric_families(scrape.text().decode())
    return {":".join((s.name, *s.labels.values())): s.value for family in families for s in family.samples}


def test_totals_stay_and_gauges_go(tmp_path: Path) -> None:
    scrape = Scrape(tmp_path)
    first, second, third = (counted(tmp_path, count) for count in (1, 2, 4))
    totals = {
        "answers_total:/rank": 7,
        "seconds_bucket:0.1": 0,
        "seconds_bucket:1.0": 7,
        "seconds_bucket:+Inf": 7,
        "seconds_count": 7,
        "seconds_sum": 3.5,
    }
    assert samples(scrape) == {**totals, "kept": 7, "model:v1": 1, "model:v2": 1, "model:v4": 1}
    scrape.bury(first)
    assert samples(scrape) == {**totals, "kept": 6, "model:v2": 1, "model:v4": 1}
    scrape.bury(second)
    scrape.bury(third)
    assert samples(scrape) == totals
    assert {file.name for file in tmp_path.iterdir()} == {"counter_0.db", "histogram_0.db"}


def test_the_parent_scrapes_before_anything_was_counted(tmp_path: Path) -> None:
    scrape = Scrape(tmp_path)
    scrape.bury(12345)
    assert samples(scrape) == {}
