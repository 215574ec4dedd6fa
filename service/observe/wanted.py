"""Whether traces are asked for, and can be made.  Light: the parent asks before it starts anything."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec

from service.observe.sampling import read_sampling

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOL, _PROTOCOLS = "http/protobuf", ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_NEEDED = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")


def traces_wanted(environment: Mapping[str, str]) -> bool:
    """An endpoint of a collector is given, and traces are not switched off."""
    off = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    none = environment.get("OTEL_TRACES_EXPORTER", "") == "none"
    return any(environment.get(name) for name in _ENDPOINTS) and not off and not none


def check_traces(environment: Mapping[str, str] = os.environ) -> None:
    """ValueError when traces are asked for and cannot be made."""
    if not traces_wanted(environment):
        return
    if environment.get("OTEL_TRACES_EXPORTER") not in (None, "", "otlp"):
        raise ValueError("OTEL_TRACES_EXPORTER: must be otlp or none")
    for name in _ENDPOINTS:
        if not (environment.get(name) or "http://").startswith(("http://", "https://")):
            raise ValueError(f"{name}: must be the URL of a collector, such as http://127.0.0.1:4318")
    for name in _PROTOCOLS:
        if (environment.get(name) or _PROTOCOL) != _PROTOCOL:
            raise ValueError(f"{name}: must be {_PROTOCOL}, for which a collector listens on port 4318")
    read_sampling(environment)
    if not all(_is_there(package) for package in _NEEDED):
        given = next(name for name in _ENDPOINTS if environment.get(name))
        raise ValueError(f"{given} asks for traces: pip install 'farm-ranker[otel]', or set OTEL_SDK_DISABLED=true")


def _is_there(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # of what it is in
        return False
