"""Of `farm bench faults`: another model under load."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from loadtest.bench.faults_answers import is_good, wrong_answers
from loadtest.bench.faults_lab import Ground, p99, unanswered
from loadtest.bench.faults_models import Activation, Models, must_activate, serving_models, two_models
from loadtest.load.trace import Trace, joined
from loadtest.process import ServiceProcess
from model.figures import claim

LOAD = 0.6  # of saturation

_P99_RATIO = 1.15
_LEAD_S = 1.0  # of load before the first window
_LONGEST_S = 20.0  # of an activation


def reload(ground: Ground) -> dict[str, Any]:
    """Activations in turn under load; each begins a window, and a window of the same length without one follows."""
    sizes, bodies = ground.sizes, ground.bodies()
    with tempfile.TemporaryDirectory() as folder:
        models = two_models(ground.lab, Path(folder))
        with serving_models(ground.lab, models) as service:
            rate = LOAD * ground.peak(service, "lmdb")
            seconds = sizes.reloads * (2 * sizes.window_s + _LONGEST_S)
            with ground.loading(service.process.url, bodies, seconds, rate) as load:
                time.sleep(_LEAD_S)
                windows = [_window(ground, models, service.process, number) for number in range(sizes.reloads)]
                load.stop()
                result = load.result()
    trace = result.traced()
    swaps = joined([trace.between(change.asked, end) for change, end in windows])
    controls = joined([trace.between(end, end + (end - change.asked)) for change, end in windows])
    return {
        "rate": rate,
        "reloads": len(windows),
        "changes_s": [change.told - change.asked for change, _ in windows],
        "statuses": result.statuses,
        "failed": unanswered(result),
        "wrong_answers": wrong_answers(result, bodies.path.read_bytes().splitlines())[:3],
        "old_answers": sum(len(_old_answers(trace, change, end)) for change, end in windows),
        "swap": _figures(swaps),
        "control": _figures(controls),
        "p99_ratio": (p99(swaps) or 0.0) / (p99(controls) or 1.0),
    }


def _window(ground: Ground, models: Models, service: ServiceProcess, number: int) -> tuple[Activation, float]:
    """One activation, and when its window ends; returns after the window without one."""
    change = must_activate(service, models.versions[(number + 1) % 2])
    end = max(change.asked + ground.sizes.window_s, change.told)
    time.sleep(max(0.0, end + (end - change.asked) - time.perf_counter()))
    return change, end


def _old_answers(trace: Trace, change: Activation, end: float) -> Trace:
    """Answers of another model to requests that were sent after the acknowledgement."""
    later = trace.where((trace.sent >= change.told) & (trace.sent < end)).only(is_good)
    return later.only(lambda kind: kind.version != change.version)


def _figures(trace: Trace) -> dict[str, Any]:
    return {"requests": len(trace), "p99_ms": p99(trace), "max_ms": float(trace.ms.max(initial=0.0))}


def reload_claims(found: dict[str, Any]) -> list[dict[str, Any]]:
    text = f"{found['reloads']} reloads at {LOAD:.0%} of saturation: "
    wrong = len(found["wrong_answers"])
    return [
        claim(text + "requests that failed", found["failed"] + wrong, "<=", 0),
        claim(text + "p99 of the windows with one / without", found["p99_ratio"], "<=", _P99_RATIO),
        claim(text + "answers of the old model after the acknowledgement", found["old_answers"], "<=", 0),
    ]
