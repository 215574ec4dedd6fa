"""`farm study`: train a grid of variants and seeds, compare them, write study.json.

    study.json              settings, figures, comparisons, claims
    runs/<variant>/<seed>/  run folders (model.study.runs)

Everything in study.json but the runs is made anew by every call: a call with more variants or seeds adds their runs.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model.config import split_settings
from model.datasets.prepared import Prepared, fingerprint
from model.figures import environment
from model.study.bounds import bounds
from model.study.claims import make_claims
from model.study.compare import compare
from model.study.drawn import METRICS, Cell, Drawn, Progress, Scores, draw_figures, parts, summary
from model.study.grid import FARM, Variant, parse_variants
from model.study.parameters import Parameters, count_parameters, match_dense
from model.study.runs import Job, Settings, StudyError, run_all
from model.study.simulation import Simulation

DRAWS = 300
STUDY_FILE = "study.json"


@dataclass(frozen=True)
class Planned:
    """A variant with all settings but the seed."""

    settings: Settings
    parameters: Parameters

    def as_json(self) -> dict[str, Any]:
        return {"settings": self.settings, "parameters": asdict(self.parameters)}


def run(
    data: Path,
    out: Path,
    variants: list[str],
    seeds: int = 5,
    jobs: int | None = None,
    epochs: int | None = None,
    settings: Settings | None = None,
    match: bool = True,
    progress: Progress = lambda text: None,
    draws: int = DRAWS,
) -> dict[str, Any]:
    """Do a study, or go on with one; the content of study.json.

    data: PREPARED folder.  out: folder of the study.  variants: as model.study.grid reads them.  seeds: runs of each
    variant, at least 2.  jobs: processes, default one per core.  settings: for all variants.  match: give a variant as
    many dense parameters as FARM by its `expert_width`, unless it sets that itself.  draws: of users, for intervals.
    Raises StudyError when a run failed, GridError or ValueError for variants and settings that cannot be.

    Example: ``run(Path("prepared"), Path("study"), ["main"], seeds=5)``
    """
    if seeds < 2:
        raise StudyError(f"--seeds {seeds}: at least 2, for the spread over seeds is part of every interval")
    common = {**(settings or {}), **({} if epochs is None else {"epochs": epochs})}
    if "seed" in common:
        raise StudyError("--set seed: the seeds of a study are 0, 1, ...; give their number with --seeds")
    prepared = Prepared.open(data)
    simulation = Simulation.of(prepared)
    plan = _plan(prepared, parse_variants(variants), common, match)
    _say_parameters(plan, progress)
    with _held(out):
        digest = fingerprint(data)
        folders = _run(prepared, out, plan, seeds, jobs or len(os.sched_getaffinity(0)), digest, progress)
        scores = {name: [np.load(path / "test.npy") for path in paths] for name, paths in folders.items()}
        asked = {"variants": variants, "seeds": seeds, "epochs": epochs, "match": match, "settings": settings or {}}
        about = {
            "study": {**asked, "draws": draws, "command": _command(data, out, asked)},
            "environment": environment(),
        }
        study = about | _found(prepared, plan, scores, simulation, draws, progress)
        study["data"]["fingerprint"] = digest
        _write_whole(out / STUDY_FILE, study)
    return study


def _plan(data: Prepared, variants: list[Variant], common: Settings, match: bool) -> dict[str, Planned]:
    """All settings of every variant; StudyError when two are the same."""
    plan: dict[str, Planned] = {}
    for variant in variants:
        chosen = {**data.info.training, **common, **variant.settings}
        if match and FARM in plan and "expert_width" not in variant.settings:
            chosen = match_dense(chosen, data.view, plan[FARM].parameters.dense)
        full = _full(chosen)
        for name, other in plan.items():
            if other.settings == full:
                raise StudyError(f"variant {variant.name!r}: its settings are those of {name!r}; leave one of them out")
        plan[variant.name] = Planned(full, count_parameters(full, data.view))
    return plan


def _full(chosen: Settings) -> Settings:
    """With all defaults, without the seed: a default may change, this study's settings may not."""
    model, training = split_settings(chosen)
    return {name: value for name, value in {**vars(model), **vars(training)}.items() if name != "seed"}


def _run(
    data: Prepared, out: Path, plan: dict[str, Planned], seeds: int, jobs: int, digest: str, progress: Progress
) -> dict[str, list[Path]]:
    """Do the runs; their folders per variant, by seed.  A seed's runs come together: an early look can be fair."""
    folders = {name: [out / "runs" / name / str(seed) for seed in range(seeds)] for name in plan}
    todo = [
        Job(f"{name}, seed {seed}", folders[name][seed], data.path, {**plan[name].settings, "seed": seed}, digest)
        for seed in range(seeds)
        for name in plan
    ]
    run_all(todo, jobs, progress)
    return folders


def _found(
    data: Prepared, plan: dict[str, Planned], scores: Scores, simulation: Simulation, draws: int, progress: Progress
) -> dict[str, Any]:
    """Everything that follows from the runs' probabilities."""
    drawn = draw_figures(data, scores, draws, progress)
    results, reached = _results(drawn), bounds(data, simulation, progress)
    comparisons = compare(drawn, simulation)
    parameters = {name: planned.parameters for name, planned in plan.items()}
    _say_not_measurable(drawn, progress)
    return {
        "data": _about(data) | {"not_measurable": drawn.not_measurable, "simulation": asdict(simulation)},
        "variants": {name: planned.as_json() for name, planned in plan.items()},
        "results": results,
        "groups": _group_results(drawn),
        "bounds": reached,
        "comparisons": [one.as_json() for one in comparisons],
        "claims": make_claims(comparisons, parameters, results, reached, data.view.tasks[0], simulation.null),
    }


def _say_not_measurable(drawn: Drawn, progress: Progress) -> None:
    """One line for all users, one per activity group."""
    for group in (None, *drawn.groups):
        names = [
            f"{part['task']} {part['metric'] or ''}".rstrip() + f" ({part['positives']:,} positives)"
            for part in drawn.not_measurable
            if part["group"] == group
        ]
        if names:
            progress(f"too few to measure, in no family{f', {group} users' if group else ''}: {', '.join(names)}")


def _about(data: Prepared) -> dict[str, Any]:
    info, whole = data.info, [part for part in parts(data) if part.group is None]
    return {
        "source": info.source,
        "test_from": str(info.test_from),
        "counts": info.counts,
        "splits": {name: list(rows) for name, rows in info.splits.items()},
        "group_names": list(info.group_names),
        "positives": {part.task: part.positives for part in whole},
        "samples": {part.task: len(part.labels) for part in whole},
        "measurable": {part.task: part.measurable for part in whole},
    }


def _results(drawn: Drawn) -> dict[str, dict[str, dict[str, Any]]]:
    return {
        name: {task: {m: summary(figures.get(Cell(task, m))) for m in METRICS} for task in drawn.tasks}
        for name, figures in drawn.figures.items()
    }


def _group_results(drawn: Drawn) -> dict[str, Any]:
    return {
        name: {
            group: {task: {"auc": summary(figures.get(Cell(task, "auc", group)))} for task in drawn.tasks}
            for group in drawn.groups
        }
        for name, figures in drawn.figures.items()
    }


def _say_parameters(plan: dict[str, Planned], progress: Progress) -> None:
    farm = plan[FARM].parameters
    for name, planned in plan.items():
        p, width = planned.parameters, planned.settings["expert_width"]
        share = p.dense / farm.dense
        progress(f"{name}: {p.total:,} parameters, {p.dense:,} dense ({share:.3f} of farm's, expert_width {width})")


def _command(data: Path, out: Path, asked: dict[str, Any]) -> str:
    """The command that makes this study again, by the folders' names alone."""
    words = ["farm", "study", "--data", Path(data).name, "--out", Path(out).name]
    words += [word for text in asked["variants"] for word in ("--variant", text)]
    words += ["--seeds", str(asked["seeds"])]
    words += [] if asked["epochs"] is None else ["--epochs", str(asked["epochs"])]
    words += [] if asked["match"] else ["--no-match"]
    for name, value in asked["settings"].items():
        words += ["--set", f"{name}={str(value).lower() if isinstance(value, bool) else value}"]
    return shlex.join(words)


@contextmanager
def _held(out: Path) -> Iterator[None]:
    """The study's folder, ours alone until the end; StudyError for another's, or one that a study is writing."""
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / "runs").is_dir()):
        raise StudyError(f"{out}: holds something else (no runs folder); give another folder")
    (out / "runs").mkdir(parents=True, exist_ok=True)
    with (out / "runs" / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StudyError(f"{out}: another study is writing there; wait for it or stop it") from None
        yield


def _write_whole(path: Path, study: dict[str, Any]) -> None:
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps(study, indent=1, allow_nan=False) + "\n")
    os.replace(scratch, path)
