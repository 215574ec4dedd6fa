"""Kubernetes manifests for tests: read, rendered, checked against schemas and the restricted profile."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

ROOT = Path(__file__).parent.parent
KUBERNETES = ROOT / "deploy" / "kubernetes"
VERSION = "1.34"
OVERLAYS = tuple(sorted(folder.name for folder in (KUBERNETES / "overlays").iterdir()))

Resource = dict[str, Any]


def documents(file: Path) -> list[Resource]:
    """The resources of one file."""
    return [one for one in yaml.safe_load_all(file.read_text()) if one]


def render(overlay: str) -> list[Resource]:
    """The resources of an overlay, by `kubectl kustomize`."""
    command = ["kubectl", "kustomize", str(KUBERNETES / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [one for one in yaml.safe_load_all(done.stdout) if one]


def whole_files() -> Iterator[Path]:
    """Files with whole resources, which are those of base and components, and of overlays those that are no patches."""
    for file in sorted(KUBERNETES.rglob("*.yaml")):
        if file.name == "kustomization.yaml":
            kustomization = yaml.safe_load(file.read_text())
            for name in kustomization["resources"]:
                if name.endswith(".yaml"):
                    yield file.parent / name


def check_schema(resource: Resource) -> None:
    """Strictly, against the schemas of Kubernetes, or of kubernetes_crds.yaml.  jsonschema's ValidationError."""
    try:
        kubernetes_validate.validate(resource, VERSION, strict=True)
    except kubernetes_validate.SchemaNotFoundError:
        schemas = _custom()
        schema = schemas[f"{resource['apiVersion']}/{resource['kind']}"] | {"$defs": schemas["$defs"]}
        jsonschema.validate(resource, schema)


@cache
def _custom() -> dict[str, Any]:
    schemas: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "kubernetes_crds.yaml").read_text())
    return schemas


def pods(resources: Iterable[Resource]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and pod specification of every workload."""
    for resource in resources:
        template = resource.get("spec", {}).get("template", {})
        if "spec" in template:
            yield f"{resource['kind']}/{resource['metadata']['name']}", template["spec"]


def not_restricted(pod: dict[str, Any]) -> list[str]:
    """What Pod Security's profile `restricted` would refuse in a pod, and a root file system that can be written."""
    faults = [name for name in ("hostNetwork", "hostPID", "hostIPC") if pod.get(name)]
    faults += [f"volume {volume['name']}" for volume in pod.get("volumes", []) if "hostPath" in volume]
    for container in pod["containers"] + pod.get("initContainers", []):
        security = pod.get("securityContext", {}) | container.get("securityContext", {})
        wanted = {
            "runAsNonRoot": True,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
            "runAsUser": 10001,
        }
        faults += [f"{container['name']}.{key}" for key, value in wanted.items() if security.get(key) != value]
    return faults
