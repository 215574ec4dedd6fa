"""checkpoint.pt: everything that an unfinished run needs to go on as if it had not been stopped."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from model.datasets.prepared import Prepared
from model.farm import Ranker
from model.train.distributed import Ranks
from model.train.optimiser import Optimisers
from model.train.run import CHECKPOINT, RUN, Run, RunError, Settings, same_data


@dataclass
class Place:
    """Where a process stands in an epoch.  Batches and rows are functions of (seed, epoch) and need no state."""

    step: int = 0
    samples: int = 0
    loss_sum: float = 0.0  # over those samples
    seconds: float = 0.0
    random: list[torch.Tensor] = field(default_factory=list)  # states of torch's generators; none between epochs

    def take_random(self) -> None:
        self.random = [torch.get_rng_state()]
        if torch.cuda.is_available():
            self.random.append(torch.cuda.get_rng_state())

    def give_random(self) -> None:
        torch.set_rng_state(self.random[0])
        if len(self.random) > 1:
            torch.cuda.set_rng_state(self.random[1])


def save_checkpoint(folder: Path, run: Run, model: Ranker, optimisers: Optimisers, place: Place, ranks: Ranks) -> None:
    """Every rank calls it, the first writes.  A place at step 0 is the start of the run's next epoch."""
    places = ranks.gather(vars(place))
    if ranks.first:
        state = {"model": model.state_dict(), "optimisers": optimisers.state_dict(), "run": run.as_json()}
        save_tensors(state | {"places": places}, folder / CHECKPOINT)


def resume(
    folder: Path, data: Prepared, settings: Settings, model: Ranker, optimisers: Optimisers, ranks: Ranks
) -> tuple[Run, Place] | None:
    """The unfinished run of the same settings and data in the folder, its state loaded; None when there is none.

    RunError when it stopped inside an epoch with another number of processes, or the ranks do not see one folder.
    """
    state = _state_of(folder, data, settings, model)
    if len(set(ranks.gather(None if state is None else (state["run"], state["places"][0]["step"])))) > 1:
        raise RunError(f"{folder}: not the same on all ranks; give them one folder on a shared disk")
    if state is None:
        return None
    places = [Place(**place) for place in state["places"]]
    if places[0].step and len(places) != ranks.world:
        raise RunError(f"{folder}: stopped inside an epoch with {len(places)} processes; go on with as many")
    model.load_state_dict(state["model"])
    optimisers.load_state_dict(state["optimisers"])
    return Run.from_json(state["run"]), places[ranks.rank] if places[0].step else Place()


def _state_of(folder: Path, data: Prepared, settings: Settings, model: Ranker) -> dict[str, Any] | None:
    checkpoint = folder / CHECKPOINT
    if not checkpoint.is_file():
        return None
    state: dict[str, Any] = torch.load(checkpoint, weights_only=True, map_location="cpu")
    run = Run.from_json(state["run"])  # run.json may be one epoch behind, or not there yet
    finished = (folder / RUN).is_file() and Run.load(folder).finished
    same = run.settings == settings and run.view == model.view and same_data(run, data)
    if finished or not same or "places" not in state:
        return None
    return state


def save_tensors(state: Any, path: Path) -> None:
    """The whole file or the one before it, whatever stops the process."""
    scratch = path.with_suffix(".tmp")
    torch.save(state, scratch)
    os.replace(scratch, path)
