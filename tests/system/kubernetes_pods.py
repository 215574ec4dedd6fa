"""Deployments of an overlay, run by `podman play kube` on this machine.

What podman or a machine without Kubernetes cannot do is changed in the rendered manifest, and nothing else: the pod has
the host's network, so ports are free ones of it; volumes are folders of the host; image names are those of the build;
probes and preStop, which are a kubelet's work, are left to the test; and nothing is restarted, because podman 4.3
restarts init containers too, those that are done.
"""

from __future__ import annotations

import base64
import copy
import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import yaml
from debian_programs import run
from images import debian, podman_environment
from kubernetes_manifests import Resource

_OF_KUBELET = ("startupProbe", "readinessProbe", "livenessProbe", "lifecycle", "ports")
_PAUSE = "trap exit TERM; sleep infinity & wait"


@dataclass(frozen=True)
class Pod:
    """A pod that was started."""

    name: str
    ports: Mapping[str, int]  # by the names of the manifest
    container: dict[str, Any]  # the first of the manifest, unchanged

    def probe(self, kind: str) -> bool:
        """What a kubelet would find."""
        asked = self.container[f"{kind}Probe"]["httpGet"]
        try:
            answer = httpx.get(f"http://127.0.0.1:{self.ports[asked['port']]}{asked['path']}", trust_env=False)
        except httpx.TransportError:
            return False
        return 200 <= answer.status_code < 400

    def url(self, port: str) -> str:
        return f"http://127.0.0.1:{self.ports[port]}"

    def state(self, container: str) -> dict[str, Any]:
        """Of one of its containers, as podman tells."""
        found: list[dict[str, Any]] = json.loads(_podman("inspect", f"{self.name}-{container}"))
        return found[0]

    def logs(self) -> str:
        """Of all its containers."""
        names = _podman("ps", "--all", "--filter", f"pod={self.name}", "--format", "{{.Names}}").split()
        return "\n".join(_output(f"{_program()} logs {name}") for name in names)

    def stop(self, within_s: int) -> int:
        """SIGTERM, and after so long SIGKILL; the exit status of the container."""
        _podman("pod", "stop", "--time", str(within_s), self.name)
        return int(self.state(self.container["name"])["State"]["ExitCode"])


@contextmanager
def played(
    resources: list[Resource],
    name: str,
    image: str,
    folders: Mapping[str, Path],
    settings: Mapping[str, str],
    ports: Mapping[str, int],
    file: Path,
) -> Iterator[Pod]:
    """A Deployment's pod.

    folders: by volume; settings: that replace those of the ConfigMap and of the containers; file: for what podman is
    given.
    """
    config = copy.deepcopy(next(one for one in resources if one["kind"] == "ConfigMap"))
    deployment = next(one for one in resources if (one["kind"], one["metadata"]["name"]) == ("Deployment", name))
    first = deployment["spec"]["template"]["spec"]["containers"][0]
    config["data"] |= settings
    changed = _for_podman(copy.deepcopy(deployment), image, folders, settings)
    for one in (config, changed):
        one["metadata"].pop("namespace")
    file.write_text(yaml.safe_dump_all([config, changed]))
    pod = Pod(f"{name}-pod-0", ports, first)
    try:
        _output(f"{_program()} play kube --network host {file}")  # it says too when a container ends at once
        yield pod
    finally:
        _podman("pod", "rm", "--force", "--ignore", "--time", "0", pod.name)


@contextmanager
def secret(name: str, key: str, value: str) -> Iterator[None]:
    """As `secretKeyRef` finds it: podman's secret of that name is JSON, of its keys to values in base64."""
    content = json.dumps({key: base64.b64encode(value.encode()).decode()})
    _output(f"{_program()} secret rm {name}")  # of a run that was killed
    subprocess.run(
        [*_program().split(), "secret", "create", name, "-"], input=content, text=True, check=True, capture_output=True
    )
    try:
        yield
    finally:
        _podman("secret", "rm", name)


def _for_podman(deployment: Resource, image: str, folders: Mapping[str, Path], settings: Mapping[str, str]) -> Resource:
    pod = deployment["spec"]["template"]["spec"]
    pod["hostNetwork"] = True
    pod["restartPolicy"] = "Never"
    pod["volumes"] = [
        {"name": volume["name"], "hostPath": {"path": str(folders[volume["name"]]), "type": "Directory"}}
        for volume in pod["volumes"]
    ]
    for container in pod["containers"] + pod.get("initContainers", []):
        container |= {"image": image, "imagePullPolicy": "Never"}
        for variable in container.get("env", []):
            if variable["name"] in settings:
                variable["value"] = settings[variable["name"]]
        for field in _OF_KUBELET:
            container.pop(field, None)
    return deployment


def _podman(*words: str) -> str:
    return run(*_program().split(), *words)


def _output(command: str) -> str:
    """Whatever it wrote, and however it ended."""
    done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@cache
def _program() -> str:
    """Podman, and an image for the container that holds a pod together, for which Debian's lacks a program."""
    base = debian("base", ("ca-certificates", "python3", "python3-venv"))
    container = run("buildah", "from", base).strip()
    run("buildah", "config", "--entrypoint", json.dumps(["sh", "-c", _PAUSE]), "--cmd", "", container)
    run("buildah", "commit", "--rm", container, f"{base}-pause")
    file = Path(podman_environment()["CONTAINERS_CONF"])
    pods = file.with_name("pods.conf")
    pods.write_text(file.read_text().replace("[engine]", f'[engine]\ninfra_image = "{base}-pause"'))
    return f"env CONTAINERS_CONF={pods} podman"
