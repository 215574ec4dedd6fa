"""What a report is of: a STUDY folder, its PREPARED data, and the samples and users that the models are asked about.

A STUDY folder holds study.json and runs/<variant>/<seed>/ (run folders, each with test.npy: probabilities of all test
samples [N, T] float32).  What the report computes itself is on the first seed's run, unless a section says otherwise.
Letters: N test samples, T tasks, U users.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from model.artifact.calibration import Calibration
from model.calibrate import load_calibration
from model.datasets.prepared import Prepared
from model.datasets.samples import Batch, batches
from model.evaluate import predict, tensors
from model.farm import Histories, Ranker
from model.study.grid import BASE, FARM
from model.train import Run, load_model, require_view

SAMPLES, USERS = 20_000, 10_000  # test samples, users at most that heavy computations are on
BATCH = 1024
Figures = dict[str, Any]


class ReportError(ValueError):
    """The folder holds no study, or one that is not of the data."""


@dataclass(frozen=True)
class Subject:
    """A study and its data, opened."""

    path: Path
    record: dict[str, Any]  # study.json
    data: Prepared
    _models: dict[tuple[str, str], Ranker | None] = field(default_factory=dict)

    @classmethod
    def open(cls, study: Path, data: Path) -> Subject:
        """ReportError without study.json, or when it has other tasks than the data; PreparedError without the data."""
        file = study / "study.json"
        if not file.is_file():
            raise ReportError(f"{study}: no study.json; make the folder with `farm study`")
        try:
            record = json.loads(file.read_text())
        except ValueError as error:
            raise ReportError(f"{file}: not JSON: {error}") from None
        prepared = Prepared.open(data)
        for name, results in record.get("results", {}).items():
            if unknown := sorted(set(results) - set(prepared.view.tasks)):
                raise ReportError(f"{file}: results.{name} has the task {unknown[0]!r}, which {data} has not")
        return cls(study, record, prepared)

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.data.view.tasks

    @property
    def variants(self) -> list[str]:
        """Names of the variants with results: the base first, then FARM, then the others as in study.json."""
        names = list(self.record.get("results", {}))
        first = [name for name in (BASE, FARM) if name in names]
        return first + [name for name in names if name not in first]

    @property
    def command(self) -> str:
        return str(self.record.get("study", {}).get("command") or "farm study")

    def missing(self, *variants: str) -> str:
        """What to do about variants without a run."""
        added = " ".join(f"--variant {name}" for name in variants)
        return f"Not in this study: {', '.join(variants)}. Run it again with {added} added: {self.command}"

    def seeds(self, variant: str) -> list[str]:
        """Seeds of a variant that have a model, ascending; "0" before "10"."""
        folder = self.path / "runs" / variant
        found = [file.parent.name for file in folder.glob("*/model.pt")]
        return sorted(found, key=lambda seed: (len(seed), seed))

    def run_folder(self, variant: str, seed: str) -> Path:
        return self.path / "runs" / variant / seed

    def run(self, variant: str, seed: str) -> Run:
        return Run.load(self.run_folder(variant, seed))

    def model(self, variant: str, seed: str | None = None) -> Ranker | None:
        """The model of a variant, None without one.  RunError when it was trained on data of another view."""
        seeds = self.seeds(variant)
        if not seeds:
            return None
        seed = seeds[0] if seed is None else seed
        if (variant, seed) not in self._models:
            run, model = load_model(self.run_folder(variant, seed))
            require_view(run, self.data)
            self._models[variant, seed] = model
        return self._models[variant, seed]

    def scores(self, variant: str) -> np.ndarray | None:
        """Probabilities of all test samples by the first seed's model [N, T]; None without one."""
        seeds = self.seeds(variant)
        if not seeds:
            return None
        rows, file = self.data.rows("test"), self.run_folder(variant, seeds[0]) / "test.npy"
        if not file.is_file():
            model = self.model(variant)
            return None if model is None else predict(model, self.data, rows)
        scores: np.ndarray = np.load(file, mmap_mode="r")
        if scores.shape != (len(rows), len(self.tasks)):
            raise ReportError(
                f"{file}: is {scores.shape}, and the data has {len(rows)} test samples: it is of other data"
            )
        return scores

    def calibration(self, variant: str) -> Calibration | None:
        """The calibration of the first seed's run, None when it was not calibrated."""
        seeds = self.seeds(variant)
        calibration = load_calibration(self.run_folder(variant, seeds[0]), self.tasks) if seeds else None
        return calibration if calibration is not None and calibration.curves else None

    def sampled_rows(self) -> np.ndarray:
        """Test samples, at most SAMPLES of them, drawn with a fixed seed; in order of time."""
        rows = self.data.rows("test")
        if len(rows) <= SAMPLES:
            return rows
        return np.sort(np.random.default_rng(0).choice(rows, SAMPLES, replace=False))

    def user_rows(self) -> np.ndarray:
        """The last test sample of each user, of at most USERS users drawn with a fixed seed; by user.  [U]"""
        rows = self.data.rows("test")[::-1]
        _, last = np.unique(self.data.samples["user_row"][rows], return_index=True)
        if len(last) > USERS:
            last = np.sort(np.random.default_rng(0).choice(last, USERS, replace=False))
        chosen = rows[last]
        return chosen[np.argsort(self.data.samples["user_row"][chosen])]

    def groups(self, rows: np.ndarray) -> np.ndarray:
        """Activity group of the user of each sample, -1 where unknown.  [len(rows)]"""
        users = np.asarray(self.data.samples["user_row"][rows])
        if "activity_group" not in self.data.users:
            return np.full(len(rows), -1)
        group = self.data.users["activity_group"][users].astype(np.int64)
        known = (group >= 0) & (group < len(self.data.info.group_names))
        return np.where(known, group, -1)

    def batches(self, rows: np.ndarray) -> Iterator[Batch]:
        return batches(self.data, rows, BATCH)


def histories(model: Ranker, batch: Batch) -> Histories:
    """Both histories of a batch's requests, embedded (Eq. 8)."""
    inputs = tensors(batch)
    del inputs["user"]
    return model.inputs.histories(**inputs)
