"""A short fuzz, and a short soak."""

from __future__ import annotations

from pathlib import Path

from loadtest.bench import fuzz, soak
from loadtest.bench.faults_lab import Ground


def test_nothing_that_is_sent_breaks_the_service(artifact: Path) -> None:
    report = fuzz.measure(artifact, list(fuzz.PARTS), fuzz.Sizes(160, 500, 60, ("lmdb",)))
    *claims, requests = report["claims"]
    assert [one["claim"] for one in claims if not one["holds"]] == []
    assert requests["value"] > 600
    assert {200, 400, 422} <= set(report["results"]["lmdb"]["bodies"]["statuses"])


def test_a_soak_counts_what_it_should(artifact: Path, ground: Ground) -> None:
    found = soak.soak(artifact, soak.Sizes(3, 2.0), ["redis"], ground.sizes)
    assert len(found["minutes"]) == 3
    assert found["requests"] > 50
    assert (found["failed"], found["wrong_answers"]) == (0, 0)
    assert all(minute["usage"]["rss_mb"] > 10 for minute in found["minutes"])
    assert found["threads_growth"] <= 3
