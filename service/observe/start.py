"""Traces and the log of slow requests of a process, as the environment and the settings say."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from service.observe.sampling import read_sampling
from service.observe.slow import SlowRequests
from service.observe.trail import Observer, install
from service.observe.wanted import traces_wanted
from service.runtime import StartError
from service.settings import Settings

if TYPE_CHECKING:
    from service.observe.traces import OtlpTracer

_FLUSH_S = 2.0  # for what is left when the process ends


@contextmanager
def observing(settings: Settings) -> Iterator[None]:
    """Requests of this process leave traces and log lines meanwhile.  Begin it after the process was forked.

    StartError when OpenTelemetry refuses what the environment says.
    """
    tracer = _tracer()
    slow = SlowRequests(settings.slow_ms / 1000) if settings.slow_ms else None
    install(Observer(tracer, slow))
    try:
        yield
    finally:
        install(Observer())
        if slow is not None:
            slow.close()
        if tracer is not None:
            tracer.close(_FLUSH_S)


def _tracer() -> OtlpTracer | None:
    if not traces_wanted(os.environ):
        return None
    from service.observe.traces import OtlpTracer  # only for those who want them: its packages are an extra

    try:
        return OtlpTracer(read_sampling(os.environ))
    except ValueError as error:
        raise StartError(f"traces: the OTEL_* variables are refused: {error}") from error
