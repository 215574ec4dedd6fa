"""What a load measured, and whether it is what was promised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

from loadtest.frontend.settings import LoadSettings
from loadtest.frontend.tally import EVENTS, RANK, Tally
from loadtest.load.figures import percentiles
from model.figures import claim


@dataclass(frozen=True)
class Verdict:
    """Figures, and objectives as claims about them."""

    figures: dict[str, Any]
    objectives: list[dict[str, Any]]
    problems: list[str]

    @property
    def met(self) -> bool:
        return not self.problems and all(objective["holds"] for objective in self.objectives)

    def lines(self) -> list[str]:
        """One a line, with its value and its bound."""
        found = [f"not measured: {problem}" for problem in self.problems]
        return found + [_line(objective) for objective in self.objectives]

    def as_json(self) -> dict[str, Any]:
        return {
            "met": self.met,
            "figures": self.figures,
            "objectives": self.objectives,
            "problems": self.problems,
        }


def judge(tally: Tally, settings: LoadSettings) -> Verdict:
    """Every objective, and that there was something to judge."""
    found = _figures(tally, settings)
    objectives = [
        claim("rankings: p50, ms", found["rank"]["p50_ms"], "<=", settings.max_p50_ms),
        claim("rankings: p95, ms", found["rank"]["p95_ms"], "<=", settings.max_p95_ms),
        claim("rankings: p99, ms", found["rank"]["p99_ms"], "<=", settings.max_p99_ms),
        claim(
            "share of requests refused, failed or not answered", found["error_share"], "<=", settings.max_error_share
        ),
        claim("share of rankings degraded", found["degraded_share"], "<=", settings.max_degraded_share),
        claim("wrong answers", found["wrong_answers"], "<=", 0),
    ]
    if settings.rate is not None:
        share = found["begun_in_time_share"]
        objectives.append(claim("share of arrivals begun in time", share, ">=", settings.min_arrivals_share))
    return Verdict(found, objectives, sorted(set(tally.problems)))


def _figures(tally: Tally, settings: LoadSettings) -> dict[str, Any]:
    rankings, told = len(tally.ms[RANK]), len(tally.ms[EVENTS])
    errors = sum(tally.errors.values())
    late = sum(ms > settings.late_ms for ms in tally.late_ms)
    return {
        "rankings": rankings,
        "events_requests": told,
        "rank": _latencies(tally.ms[RANK]),
        "events": _latencies(tally.ms[EVENTS]),
        "errors": dict(tally.errors.most_common()),
        "error_share": _share(errors, rankings + told + errors),
        "degraded": dict(tally.degraded.most_common()),
        "degraded_share": _share(tally.degraded_answers, rankings),
        "wrong": dict(tally.wrong.most_common()),
        "wrong_answers": sum(tally.wrong.values()),
        "fresh_answers": tally.fresh,
        "arrivals_asked": tally.asked,
        "arrivals_late": late,
        "arrivals_never_begun": tally.never_begun,
        "begun_in_time_share": _share(tally.asked - late - tally.never_begun, tally.asked),
        "late_p99_ms": _latencies(tally.late_ms)["p99_ms"],
        "generator_cpu_shares": tally.cpu_shares,
    }


def _latencies(ms: Sequence[float]) -> dict[str, float | None]:
    return {name: None if isnan(value) else value for name, value in percentiles(ms).items()}


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _line(objective: dict[str, Any]) -> str:
    value = "none" if objective["value"] is None else f"{objective['value']:.6g}"
    kept = "met" if objective["holds"] else "MISSED"
    return f"{kept:6} {objective['claim']}: {value} {objective['op']} {objective['bound']:g}"
