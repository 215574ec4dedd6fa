"""Cheaper arithmetic for an artifact: fp16 for CUDA, int8 for the CPU.  Artifact -> artifact, without PyTorch."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from model.artifact.engine import Engine
from model.artifact.golden import load_golden
from model.artifact.manifest import (
    CALIBRATION,
    CANDIDATE_TOWER,
    GOLDEN,
    MANIFEST,
    TABLES,
    USER_TOWER,
    Artifact,
    Manifest,
    TensorSpec,
    describe_file,
)
from model.datasets.prepared import whole_folder
from model.export.fp16 import halve, halve_tables
from model.export.int8 import quantise
from model.export.slates import Reads
from model.export.weights import load_graph, save_graph

Precision = Literal["fp32", "fp16", "int8"]
GOLDEN_LIMITS = {"fp16": 0.01, "int8": 0.1}  # of the difference from PyTorch's float32, on random ids
_LEAST_TOLERANCE = 1e-3
_TOLERANCE_MARGIN = 1.5  # other cores and cards round otherwise


class ConvertError(ValueError):
    """The artifact cannot be converted, or is no longer the same model afterwards."""


def convert(artifact: str | Path, out: str | Path, precision: Precision, reads: Sequence[Reads] = ()) -> Artifact:
    """Write an fp32 artifact in another precision, whole or not at all; an existing artifact is replaced.

    reads: inputs that int8 takes its ranges from, of real users if there are any; the golden ones when not given.
    ConvertError when a golden probability moves by more than GOLDEN_LIMITS.
    """
    with whole_folder(Path(out), MANIFEST) as folder:
        write_converted(Artifact.open(artifact), folder, precision, reads)
    return Artifact.open(out)


def write_converted(source: Artifact, folder: Path, precision: Precision, reads: Sequence[Reads] = ()) -> None:
    """The same, into a folder that is there and empty."""
    if precision not in GOLDEN_LIMITS or source.manifest.precision != "fp32":
        raise ConvertError(
            f"{source.path}: {source.manifest.precision} to {precision}: only fp32 can be converted, to fp16 or int8"
        )
    for name in (GOLDEN, CALIBRATION):
        shutil.copyfile(source.path / name, folder / name)
    if precision == "fp16":
        _write_fp16(source.path, folder)
    else:
        _write_int8(source, folder, reads)
    limit = GOLDEN_LIMITS[precision]
    write_manifest(_manifest(source, precision, limit), folder)
    worst = _golden_difference(folder)
    tolerance = min(limit, max(_LEAST_TOLERANCE, _TOLERANCE_MARGIN * worst))
    write_manifest(_manifest(source, precision, tolerance), folder)


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """With the checksums of all files that are in the folder."""
    files = {file.name: describe_file(file) for file in sorted(folder.iterdir()) if file.name != MANIFEST}
    whole = manifest.model_copy(update={"files": files})
    (folder / MANIFEST).write_text(whole.model_dump_json(indent=1) + "\n")


def _write_fp16(source: Path, folder: Path) -> None:
    towers = {name: halve(load_graph(source / name)) for name in (USER_TOWER, CANDIDATE_TOWER)}
    halve_tables(list(towers.values()), source, folder)
    for name, tower in towers.items():
        save_graph(tower, folder / name)


def _write_int8(source: Artifact, folder: Path, reads: Sequence[Reads]) -> None:
    """The candidate tower alone: the user tower's products are too small to gain, and it runs once per request."""
    for name in (USER_TOWER, Path(USER_TOWER).with_suffix(".data").name, TABLES):
        shutil.copyfile(source.path / name, folder / name)
    engine = Engine(source)
    reads = reads or [Reads(case.users, case.candidates, case.tile_user) for case in load_golden(source.path / GOLDEN)]
    feeds = ({**engine.user_state(r.users), "candidates": r.candidates, "tile_user": r.tile_user} for r in reads)
    save_graph(quantise(load_graph(source.path / CANDIDATE_TOWER), feeds, source.path), folder / CANDIDATE_TOWER)


def _manifest(source: Artifact, precision: Precision, tolerance: float) -> Manifest:
    state = source.manifest.state
    if precision == "fp16":
        state = tuple(_halved(spec) for spec in state)
    update = {
        "created": datetime.now(UTC).replace(microsecond=0),
        "precision": precision,
        "golden_tolerance": tolerance,
        "state": state,
    }
    return source.manifest.model_copy(update=update)


def _halved(spec: TensorSpec) -> TensorSpec:
    return spec.model_copy(update={"dtype": "float16"}) if spec.dtype == "float32" else spec


def _golden_difference(folder: Path) -> float:
    try:
        return Engine.load(folder, check=False).check_golden()
    except Exception as error:  # ONNX Runtime's own errors share no base class; each means that the graphs are wrong
        raise ConvertError(f"{error}; keep fp32") from error
