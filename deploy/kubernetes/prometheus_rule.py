"""Writes components/monitoring/prometheus-rule.yaml from the rule files of deploy/prometheus/rules.

python deploy/kubernetes/prometheus_rule.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
RULES = HERE.parent / "prometheus" / "rules"
TARGET = HERE / "components" / "monitoring" / "prometheus-rule.yaml"
_HEADER = "# Made by deploy/kubernetes/prometheus_rule.py from deploy/prometheus/rules.\n"


def prometheus_rule(folder: Path) -> dict[str, Any]:
    """One PrometheusRule with the groups of every rule file in a folder, in the order of their names."""
    groups = [group for file in sorted(folder.glob("*.yml")) for group in yaml.safe_load(file.read_text())["groups"]]
    labels = {"app.kubernetes.io/name": "farm"}
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "farm", "labels": labels},
        "spec": {"groups": groups},
    }


if __name__ == "__main__":
    TARGET.write_text(_HEADER + yaml.safe_dump(prometheus_rule(RULES), sort_keys=False, width=120))
    print(TARGET)
