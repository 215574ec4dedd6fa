"""What is known of simulated data: simulation.json beside prepared.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from model.datasets.prepared import SIMULATION_FILE, Prepared
from model.study.runs import StudyError


@dataclass(frozen=True)
class Simulation:
    """What a study needs to know of how its data was made."""

    null: bool = False  # no structure was planted
    planted: dict[str, list[str]] | None = None  # by ablation: the tasks that need what it takes away; None: not known
    oracle: bool = False  # model.datasets.oracle knows the data's laws

    @classmethod
    def of(cls, data: Prepared) -> Simulation:
        """What the folder says; of data without simulation.json nothing is known.  StudyError for a bad file."""
        path = data.path / SIMULATION_FILE
        if not path.is_file():
            return cls()
        try:
            record = json.loads(path.read_text())
        except ValueError as error:
            raise StudyError(f"{path}: not JSON: {error}") from None
        planted = record.get("planted")
        if planted is not None and not _is_planted(planted):
            raise StudyError(f"{path}: planted: a list of tasks for each ablation, such as {{'no_align': ['ctr']}}")
        return cls(bool(record.get("null", False)), planted, "structures" in record)

    def tasks_of(self, ablation: str, tasks: tuple[str, ...]) -> list[str]:
        """The tasks that an ablation's structure was planted for; all when that is not known, or there is none."""
        if self.planted is None or self.null:
            return list(tasks)
        halves = ("no_video_frequency", "no_live_frequency") if ablation == "no_frequency" else ()
        needed = {task for name in (ablation, *halves) for task in self.planted.get(name, [])}
        return [task for task in tasks if task in needed]


def _is_planted(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(tasks, list) for tasks in value.values())
