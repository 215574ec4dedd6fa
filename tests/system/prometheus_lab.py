"""A real Prometheus with the committed configuration and rules, in faster time.

Every duration of both is divided by the same number, so windows, delays and scrapes keep their proportions.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml
from debian_programs import ROOT, program

from loadtest.redis_servers import free_port, wait_until

PROMETHEUS = ROOT / "deploy" / "prometheus"
TIMES_FASTER = 30

_UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_DURATION = re.compile(r"(?<![\w.])(\d+)(ms|[smhdw])\b")


def faster(text: str, times: int = TIMES_FASTER) -> str:
    """Rules or a configuration with every duration so many times shorter.  Windows in names of series stay."""
    return _DURATION.sub(lambda found: f"{max(1, int(found[1]) * _UNITS_MS[found[2]] // times)}ms", text)


@dataclass(frozen=True)
class PrometheusServer:
    """A running server."""

    url: str

    def get(self, path: str, **parameters: str) -> Any:
        """`data` of an answer of its API."""
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=30.0, trust_env=False)
        body = answer.json()
        assert body["status"] == "success", f"{parameters}: {body}"
        return body["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Series of an instant query."""
        found: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return found

    def alerts(self) -> set[str]:
        """Names of the alerts that fire."""
        return {alert["labels"]["alertname"] for alert in self.get("alerts")["alerts"] if alert["state"] == "firing"}

    def rules(self) -> list[dict[str, Any]]:
        """Every rule, with how its last evaluation went."""
        return [rule for group in self.get("rules")["groups"] for rule in group["rules"]]


@contextmanager
def running_prometheus(folder: Path, targets: Mapping[str, str]) -> Iterator[PrometheusServer]:
    """A server that scrapes these `host:port`, by job, and no other.  Its files are in `folder`."""
    binary, port = program("prometheus", "prometheus"), free_port()
    config = _configuration(folder, targets)
    options = [f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [binary, *options, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log, cwd=folder
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: _is_ready(url, process, folder), "Prometheus is ready")
        yield PrometheusServer(url)
    finally:
        process.terminate()
        process.wait(30)


def _configuration(folder: Path, targets: Mapping[str, str]) -> Path:
    (folder / "rules").mkdir()
    for rules in sorted((PROMETHEUS / "rules").glob("*.yml")):
        (folder / "rules" / rules.name).write_text(faster(rules.read_text()))
    config = yaml.safe_load(faster((PROMETHEUS / "prometheus.yml").read_text()))
    config["rule_files"] = [str(folder / "rules" / "*.yml")]
    for job in config["scrape_configs"]:
        name = job["job_name"]
        job.pop("dns_sd_configs", None)
        job["static_configs"] = [{"targets": [targets[name]]}] if name in targets else []
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    return path


def _is_ready(url: str, process: subprocess.Popen[bytes], folder: Path) -> bool:
    assert process.poll() is None, (folder / "log").read_text()[-2000:]
    try:
        return httpx.get(f"{url}/-/ready", timeout=5.0, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
