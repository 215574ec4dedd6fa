"""What the files of deploy/prometheus hold, and which metrics PromQL is about."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
PROMETHEUS = ROOT / "deploy" / "prometheus"

_METRIC = re.compile(r"\b(?:[a-z_]+:)?(?:farm|process)_\w+(?::\w+)?")
_OF_HISTOGRAM = re.compile(r"_(bucket|sum|count)$")
_STRING = re.compile(r'"[^"]*"')


def _read(pattern: str) -> list[dict[str, Any]]:
    return [yaml.safe_load(path.read_text()) for path in sorted(PROMETHEUS.glob(pattern))]


RULES = [rule for file in _read("rules/*.yml") for group in file["groups"] for rule in group["rules"]]
ALERTS = [rule for rule in RULES if "alert" in rule]
CASES = [case for file in _read("tests/*.yml") for test in file["tests"] for case in test["alert_rule_test"]]
"""Of promtool's unit tests."""


def metrics_of(expression: str) -> set[str]:
    """Names of series in PromQL."""
    return set(_METRIC.findall(_STRING.sub("", expression)))


def unknown_metrics(expression: str) -> set[str]:
    """Those that neither a rule records nor docs/metrics.md lists, which is what `/metrics` serves."""
    listed = set(re.findall(r"^\| `(\w+)`", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE))
    found = metrics_of(expression) - {rule["record"] for rule in RULES if "record" in rule}
    return {name for name in found if name not in listed and _OF_HISTOGRAM.sub("", name) not in listed}
