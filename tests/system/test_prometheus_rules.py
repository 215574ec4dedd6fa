"""promtool: the configuration and the rules are right, and every alert fires when it should and only then."""

from __future__ import annotations

import pytest
from debian_programs import program, run
from prometheus_lab import PROMETHEUS, faster

pytestmark = pytest.mark.debian


def test_rules_are_right() -> None:
    print(run(program("promtool", "prometheus"), "check", "rules", *sorted((PROMETHEUS / "rules").glob("*.yml"))))


def test_alerts_fire_when_they_should_and_only_then() -> None:
    print(run(program("promtool", "prometheus"), "test", "rules", *sorted((PROMETHEUS / "tests").glob("*.yml"))))


def test_faster_keeps_proportions_and_names() -> None:
    rule = 'rate5m > 14.4 and x:rate1h offset 1d + rate(y[5m]) for: 2m within 50 ms, le="0.05", p99'
    assert faster(rule, 30) == rule.replace("1d", "2880000ms").replace("[5m]", "[10000ms]").replace(
        "for: 2m", "for: 4000ms"
    )
