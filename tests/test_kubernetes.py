"""The manifests of deploy/kubernetes, as files: schemas, the restricted profile, and what they say of the service."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer.main
import yaml
from kubernetes_manifests import KUBERNETES, ROOT, check_schema, documents, not_restricted, pods, whole_files

import farm
from feature_store.reading.settings import ReadingSettings
from feature_store.redis.settings import RedisSettings
from service.lifecycle.settings import LifecycleSettings
from service.settings import Settings

FILES = list(whole_files())
SETTINGS = ("base/settings.env", "overlays/local/settings.env")
RULES = ROOT / "deploy" / "prometheus" / "rules"
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()


def _id(file: Path) -> str:
    return str(file.relative_to(KUBERNETES))


def _service() -> dict[str, Any]:
    return documents(KUBERNETES / "base" / "deployment.yaml")[0]


def _settings(file: str) -> dict[str, str]:
    lines = [line for line in (KUBERNETES / file).read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


@pytest.mark.parametrize("file", FILES, ids=_id)
def test_resources_are_as_their_schemas_say(file: Path) -> None:
    resources = documents(file)
    assert resources
    for resource in resources:
        check_schema(resource)


def test_an_unknown_field_is_found() -> None:
    wrong = copy.deepcopy(_service())
    wrong["spec"]["replicaz"] = 3
    with pytest.raises(jsonschema.ValidationError, match="replicaz"):
        check_schema(wrong)
    for kind, file in (("ScaledObject", "keda/service.yaml"), ("ServiceMonitor", "monitoring/monitors.yaml")):
        wrong = documents(KUBERNETES / "components" / file)[0]
        assert wrong["kind"] == kind
        wrong["spec"]["intervall"] = "1s"
        with pytest.raises(jsonschema.ValidationError, match="intervall"):
            check_schema(wrong)


@pytest.mark.parametrize("file", FILES, ids=_id)
def test_pods_are_restricted(file: Path) -> None:
    for name, pod in pods(documents(file)):
        assert not_restricted(pod) == [], name
        assert pod["automountServiceAccountToken"] is False, name
        for container in pod["containers"] + pod.get("initContainers", []):
            assert {"cpu", "memory"} <= container["resources"]["limits"].keys(), container["name"]


def test_what_is_not_restricted_is_found() -> None:
    pod = _service()["spec"]["template"]["spec"]
    pod["containers"][0] = copy.deepcopy(pod["containers"][0])  # whose context is also that of the init container
    pod["hostNetwork"] = True
    pod["containers"][0]["securityContext"] |= {"readOnlyRootFilesystem": False}
    assert not_restricted(pod) == ["hostNetwork", "farm.readOnlyRootFilesystem"]


def test_secrets_are_named_and_not_given() -> None:
    assert "Secret" not in {resource["kind"] for file in FILES for resource in documents(file)}
    for file in SETTINGS:
        given = _settings(file)
        assert not {"FARM_API_KEYS", "FARM_REDIS_PASSWORD", "FARM_OPEN"} & given.keys()
        assert "@" not in given["FARM_STORE"]


@pytest.mark.parametrize("file", SETTINGS)
def test_settings_are_settings_of_the_service(file: str) -> None:
    known = {f"FARM_{name.upper()}" for model in (Settings, LifecycleSettings) for name in model.model_fields}
    known |= {f"FARM_REDIS_{name.upper()}" for name in RedisSettings.model_fields}
    known |= {f"FARM_READING_{name.upper()}" for name in ReadingSettings.model_fields}
    given = _settings(file)
    assert given.keys() <= known
    values = {name.removeprefix("FARM_").lower(): value for name, value in given.items()}
    of_service = {name: value for name, value in values.items() if name in Settings.model_fields}
    assert Settings.model_validate(of_service).executor_count == 0


@pytest.mark.parametrize("file", SETTINGS)
def test_the_grace_period_holds_the_whole_stop(file: str) -> None:
    pod, given = _service()["spec"]["template"]["spec"], _settings(file)
    pre_stop = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    killed_after = 5  # by the service itself, when a process has not ended
    stop = pre_stop + float(given["FARM_GRACE_S"]) + float(given["FARM_DRAIN_TIMEOUT_S"]) + killed_after
    assert pod["terminationGracePeriodSeconds"] >= stop + 5


def test_probes_and_ports_are_those_of_the_service() -> None:
    pod, given = _service()["spec"]["template"]["spec"], _settings("base/settings.env")
    container = pod["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": int(given["FARM_PORT"]), "admin": int(given["FARM_ADMIN_PORT"])}
    asked = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")}
    assert asked == {
        "startup": {"path": "/readyz", "port": "admin"},
        "readiness": {"path": "/readyz", "port": "http"},
        "liveness": {"path": "/livez", "port": "admin"},
    }
    liveness = container["livenessProbe"]
    wedged_s = LifecycleSettings.model_fields["wedged_s"].default
    assert liveness["periodSeconds"] * liveness["failureThreshold"] > wedged_s


def test_containers_run_verbs_of_the_command_line() -> None:
    command: Any = typer.main.get_command(farm.app)
    for file in FILES:
        for _, pod in pods(documents(file)):
            for container in pod["containers"] + pod.get("initContainers", []):
                if not container["image"].startswith("farm-ranker") or "command" in container:
                    continue
                verb, options = command, [word for word in container["args"] if word.startswith("--")]
                for word in container["args"]:
                    verb = verb if word.startswith("--") else verb.commands[word]
                assert set(options) <= {option for parameter in verb.params for option in parameter.opts}


def test_the_prometheus_rule_is_that_of_prometheus() -> None:
    rule = documents(KUBERNETES / "components" / "monitoring" / "prometheus-rule.yaml")[0]
    groups = [group for file in sorted(RULES.glob("*.yml")) for group in yaml.safe_load(file.read_text())["groups"]]
    assert rule["spec"]["groups"] == groups, "run python deploy/kubernetes/prometheus_rule.py"


def test_monitors_name_the_jobs_that_rules_ask_for() -> None:
    monitors = documents(KUBERNETES / "components" / "monitoring" / "monitors.yaml")
    endpoints = [
        endpoint
        for one in monitors
        for key in ("endpoints", "podMetricsEndpoints")
        for endpoint in one["spec"].get(key, [])
    ]
    jobs = {relabeling["replacement"] for endpoint in endpoints for relabeling in endpoint["relabelings"]}
    assert jobs == {"farm", "farm-events"}
    asked = {job for file in RULES.glob("*.yml") for job in re.findall(r'job=~?"([^"]+)"', file.read_text())}
    assert asked
    assert all(any(re.fullmatch(one, job) for job in jobs) for one in asked)


def test_autoscalers_ask_for_metrics_that_there_are() -> None:
    adapter = yaml.safe_load((KUBERNETES / "prometheus-adapter-values.yaml").read_text())["rules"]
    made = {rule["name"]["as"] for kind in ("custom", "external") for rule in adapter[kind]}
    files = [*(KUBERNETES / "components" / "hpa").glob("*.yaml"), KUBERNETES / "overlays" / "gpu" / "autoscaler.yaml"]
    asked = {name for file in files for name in re.findall(r"metric: \{name: (\w+)\}", file.read_text())}
    assert asked == made
    queries = json.dumps(adapter) + (KUBERNETES / "components/keda/service.yaml").read_text()
    queries += (KUBERNETES / "components/keda/event-worker.yaml").read_text()
    sources = "".join(file.read_text() for room in ("service", "feature_store") for file in (ROOT / room).rglob("*.py"))
    for metric in set(re.findall(r"farm_\w+(?:tiles|entries)", queries)):
        assert f'"{metric}"' in sources, metric


def test_every_alert_has_its_runbook() -> None:
    groups = [group for file in RULES.glob("*.yml") for group in yaml.safe_load(file.read_text())["groups"]]
    alerts = {rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule}
    headings = set(re.findall(r"^#+ (Farm\w+)$", OPERATIONS, re.MULTILINE))
    assert alerts == headings


def test_figures_of_the_capacity_plan_are_those_of_the_benches() -> None:
    rows = re.findall(r"^\| [^|]+ \| ([\d,.]+)[^|]* \| \[([\w-]+)\]\([^)]+\) `([\w./]+)` \|", OPERATIONS, re.MULTILINE)
    assert len(rows) >= 8
    for printed, file, path in rows:
        value: Any = json.loads((ROOT / "docs" / "benchmarks" / f"{file}.json").read_text())["results"]
        for part in path.split("/"):
            value = value[int(part) if isinstance(value, list) else part]
        digits = len(printed.partition(".")[2])
        assert f"{value:,.{digits}f}" == printed, (file, path)
