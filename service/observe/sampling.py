"""Which requests are traced, as OpenTelemetry's environment variables say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from service.observe.w3c import SpanId

DEFAULT_RATIO = 0.01  # OpenTelemetry's own is 1: every request, which no ranker wants to pay for

_SAMPLERS = {"always_on": 1.0, "always_off": 0.0, "traceidratio": None}
_PARENT_BASED = "parentbased_"
_DRAWS = 1 << 64


@dataclass(frozen=True, slots=True)
class Sampling:
    """ratio: of traces, drawn by their ids as all OpenTelemetry SDKs do;  heed_parent: the caller's decision holds."""

    ratio: float = DEFAULT_RATIO
    heed_parent: bool = True

    def decide(self, trace_id: str, parent: SpanId | None) -> bool:
        """Whether a request is traced.  trace_id: its own, or the caller's"""
        if parent is not None and self.heed_parent:
            return parent.sampled
        return int(trace_id[16:], 16) < self.ratio * _DRAWS


def read_sampling(environment: Mapping[str, str]) -> Sampling:
    """Of OTEL_TRACES_SAMPLER and OTEL_TRACES_SAMPLER_ARG.  ValueError names what is wrong."""
    name = environment.get("OTEL_TRACES_SAMPLER") or "parentbased_traceidratio"
    kind = name.removeprefix(_PARENT_BASED)
    if kind not in _SAMPLERS:
        known = ", ".join([*_SAMPLERS, *(_PARENT_BASED + sampler for sampler in _SAMPLERS)])
        raise ValueError(f"OTEL_TRACES_SAMPLER: must be one of {known}, not {name!r}")
    ratio = _SAMPLERS[kind]
    return Sampling(_ratio(environment) if ratio is None else ratio, kind != name)


def _ratio(environment: Mapping[str, str]) -> float:
    given = environment.get("OTEL_TRACES_SAMPLER_ARG") or str(DEFAULT_RATIO)
    try:
        ratio = float(given)
    except ValueError:
        ratio = -1.0
    if not 0 <= ratio <= 1:
        raise ValueError(f"OTEL_TRACES_SAMPLER_ARG: must be a number from 0 to 1, not {given!r}")
    return ratio
