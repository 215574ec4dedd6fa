"""Locust's shapes: how many viewers when; in an open loop the arrivals follow the same stages themselves."""

from __future__ import annotations

import time
from typing import ClassVar

from locust import LoadTestShape
from locust.runners import MasterRunner

from loadtest.frontend.profile import Stage, level_at, stages_of
from loadtest.frontend.settings import LoadSettings

_VIEWERS = 10  # at level 1, without --users
_SPAWNED = 100  # viewers per second at most, which Locust bears


class StagesShape(LoadTestShape):
    """Level 1 are --users viewers; --run-time ends it before its time."""

    abstract = True
    use_common_options = True
    stages: ClassVar[tuple[Stage, ...]]
    is_open: ClassVar[bool]

    def tick(self) -> tuple[int, float] | None:
        """Of Locust: users and how many of them may be started per second; None: it is over."""
        assert self.runner is not None
        options, passed_s = self.runner.environment.parsed_options, time.perf_counter() - self.start_time
        assert options is not None
        level = level_at(self.stages, passed_s)
        if level is None or (options.run_time and passed_s >= options.run_time):
            return None
        if self.is_open:
            users = self.runner.worker_count if isinstance(self.runner, MasterRunner) else 1
        else:
            users = max(1, round(level * (options.num_users or _VIEWERS)))
        return users, min(users, _SPAWNED)


def shapes(settings: LoadSettings) -> dict[str, type[StagesShape]]:
    """What Locust is offered, by name: the one that was asked for, those of --class-picker, or none.

    An open loop has one in any case, which gives each process its one user.
    """
    is_open = settings.rate is not None
    if settings.shape == "choose":
        names = ["step", "spike", "soak"]
    else:
        ends = is_open or settings.seconds is not None
        names = [settings.shape or "constant"] if settings.shape or ends else []
    return {name.title(): _shape(name, is_open, settings.seconds) for name in names}


def _shape(name: str, is_open: bool, seconds: float | None) -> type[StagesShape]:
    members = {"stages": stages_of(name, seconds), "is_open": is_open, "abstract": False}
    return type(name.title(), (StagesShape,), members)
