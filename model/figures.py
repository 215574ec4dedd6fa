"""The JSON of a bench or a study: the environment it ran in, its raw measurements, and its claims."""

from __future__ import annotations

import operator
import os
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
_PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "torch", "lightgbm")


def claim(text: str, value: float | None, op: str, bound: float) -> dict[str, Any]:
    """One figure that an issue or the README states.  A figure that could not be measured does not hold."""
    holds = value is not None and _OPERATORS[op](value, bound)
    return {"claim": text, "value": value, "op": op, "bound": bound, "holds": holds}


def report(bench: str, settings: dict[str, Any], results: Any, claims: list[dict[str, Any]]) -> dict[str, Any]:
    """A bench's report, ready to print."""
    return {"bench": bench, "environment": environment(), "settings": settings, "results": results, "claims": claims}


def environment() -> dict[str, Any]:
    """What the figures depend on, without names of the machine."""
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "system": platform.system(),
        "packages": packages,
    }


def _cpu_model() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
