"""Metrics of the processes themselves, which the parent reads when it is asked: who lives, what each takes."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, get_args

from prometheus_client import Metric, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from service.lifecycle.places import Place, Role
from service.release import package_version

State = Literal["starting", "ready", "ended"]


def state_of(place: Place) -> State:
    """ended: another is started after a pause."""
    if place.ready_at is not None:
        return "ready"
    return "ended" if place.process is None else "starting"


class ProcessesCollector(Collector):
    """Of the parent and the processes in these places.  A place keeps its labels when its process is replaced."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = places

    def collect(self) -> Iterable[Metric]:
        yield _build()
        yield from self._population()
        yield from self._resources()

    def _population(self) -> Iterable[Metric]:
        workers = GaugeMetricFamily("farm_workers", "Processes by state.", labels=["role", "state"])
        restarts = CounterMetricFamily(
            "farm_worker_restarts_total", "Processes that ended and were replaced.", labels=["role"]
        )
        for role, places in self._by_role().items():
            states = [state_of(place) for place in places]
            for state in get_args(State):
                workers.add_metric([role, state], states.count(state))
            restarts.add_metric([role], sum(place.restarts for place in places))
        return workers, restarts

    def _by_role(self) -> dict[Role, list[Place]]:
        found: dict[Role, list[Place]] = {}
        for place in self._places:
            found.setdefault(place.role, []).append(place)
        return found

    def _resources(self) -> Iterable[Metric]:
        """One family for all processes of what the library tells of each."""
        families: dict[str, Metric] = {}
        for labels, pid in self._processes():
            for told in resources_of(pid):
                family = families.setdefault(told.name, Metric(told.name, told.documentation, told.type))
                for sample in told.samples:
                    family.add_sample(sample.name, labels, sample.value)
        return families.values()

    def _processes(self) -> Iterator[tuple[dict[str, str], int]]:
        """Labels and id of each."""
        yield {"role": "parent", "number": "0"}, os.getpid()
        for place in self._places:
            process = place.process  # read once: another thread may clear it
            if process is not None and process.pid is not None:
                yield {"role": place.role, "number": str(place.number)}, process.pid


def resources_of(pid: int) -> list[Metric]:
    """CPU, memory and file descriptors of a process, without labels; nothing of one that is gone."""
    return list(ProcessCollector(pid=lambda: pid, registry=None).collect())


def _build() -> Metric:
    build = GaugeMetricFamily("farm_build_info", "1 for the software that runs.", labels=["version", "python"])
    build.add_metric([package_version(), platform.python_version()], 1)
    return build
