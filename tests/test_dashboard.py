"""The Grafana dashboard is what its code makes, and asks for metrics that exist."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from prometheus_facts import metrics_of, unknown_metrics

from deploy.grafana.dashboard import FILE, text

GRAFANA = Path(__file__).parent.parent / "deploy" / "grafana"
DASHBOARD: dict[str, Any] = json.loads(FILE.read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]


def test_the_file_is_what_the_code_makes() -> None:
    assert FILE.read_text() == text(), "run python -m deploy.grafana.dashboard"


def test_rows_are_those_that_are_asked_for() -> None:
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == ["Objectives", "Traffic", "Latency by stage", "Batching", "Store", "Freshness", "Model quality"]


def test_panels_have_names_and_places_of_their_own() -> None:
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in DASHBOARD["panels"]]
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(places)) == len(set(ids)) == len(DASHBOARD["panels"])
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)


def test_queries_are_about_metrics_that_exist() -> None:
    assert all(metrics_of(query) or "ALERTS" in query for query in QUERIES)
    assert {name for query in QUERIES for name in unknown_metrics(query)} == set()


def test_grafana_is_given_the_source_and_the_folder() -> None:
    (source,) = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    compose = yaml.safe_load((GRAFANA.parent / "docker-compose.yml").read_text())["services"]["grafana"]["volumes"]
    (provider,) = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "farm.yml").read_text())["providers"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in compose
    assert "./grafana/provisioning:/etc/grafana/provisioning:ro" in compose
