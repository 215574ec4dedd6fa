"""The alerts and their rules without a Prometheus: complete, tested both ways, about metrics that exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_facts import ALERTS, CASES, PROMETHEUS, ROOT, RULES, unknown_metrics

RUNBOOKS = "docs/operations.md"
ALERTS_PAGE = ROOT / "docs" / "alerts.md"


def headings(page: Path) -> set[str]:
    """Anchors of a page's headings that are one word."""
    return {name.lower() for name in re.findall(r"^#+ `?(\w+)`?$", page.read_text(), re.MULTILINE)}


def test_names_are_unique() -> None:
    names = [alert["alert"] for alert in ALERTS]
    assert names
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_says_what_to_do(alert: dict[str, Any]) -> None:
    name, severity = alert["alert"], alert["labels"]["severity"]
    assert severity in {"page", "ticket"}
    assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}
    assert alert["annotations"]["runbook_url"] == f"{RUNBOOKS}#{name.lower()}"
    assert name.lower() in headings(ROOT / RUNBOOKS)
    assert f"| `{name}` | {severity} |" in ALERTS_PAGE.read_text()


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_is_tested_both_ways(alert: dict[str, Any]) -> None:
    assert {bool(case["exp_alerts"]) for case in CASES if case["alertname"] == alert["alert"]} == {True, False}


def test_only_alerts_are_tested_and_told_of() -> None:
    names = {alert["alert"] for alert in ALERTS}
    assert {case["alertname"] for case in CASES} == names
    assert set(re.findall(r"^\| `(Farm\w+)` \|", ALERTS_PAGE.read_text(), re.MULTILINE)) == names


def test_rules_are_about_metrics_that_exist() -> None:
    assert {name for rule in RULES for name in unknown_metrics(rule["expr"])} == set()


def test_prometheus_reads_the_rules() -> None:
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    assert config["rule_files"] == ["/etc/prometheus/rules/*.yml"]
    assert [job["job_name"] for job in config["scrape_configs"]] == ["farm", "farm-events"]
