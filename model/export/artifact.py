"""Export: a trained run to the artifact that serving loads (two ONNX graphs over one set of embedding tables)."""

from __future__ import annotations

import os
import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from model.artifact.calibration import Calibration
from model.artifact.engine import Engine
from model.artifact.golden import save_golden
from model.artifact.manifest import CALIBRATION, GOLDEN, MANIFEST, Artifact, Manifest, describe_file
from model.calibrate import load_calibration
from model.export.towers import write_towers
from model.farm import Ranker
from model.golden import golden_cases
from model.train import Run, load_model

GOLDEN_TOLERANCE = 1e-5


class ExportError(ValueError):
    """The model cannot be exported, or its graphs do not give what PyTorch gives."""


def export_run(run_folder: str | Path, out: str | Path, rewrite: bool = True) -> Artifact:
    """Export the chosen epoch of a run and its calibration.

    rewrite: the graphs in their serving form (model.export.serving); off, as the model was trained, to compare with.
    RunError without one, ExportError when parity is not given, CalibrationError when calibration.json is spoilt.
    """
    run, model = load_model(run_folder)
    return export_model(model, run, out, load_calibration(run_folder, run.view.tasks), rewrite)


def export_model(
    model: Ranker, run: Run, out: str | Path, calibration: Calibration | None = None, rewrite: bool = True
) -> Artifact:
    """Write the artifact folder, whole or not at all; an existing artifact is replaced.

    calibration: the identity when not given.  rewrite: as in `export_run`; the answers are the same to 1e-5.
    ExportError when ONNX Runtime and PyTorch differ by more than 1e-5 on a golden case.
    """
    folder = Path(out)
    if folder.exists() and not (folder / MANIFEST).is_file():
        raise ExportError(f"{folder}: exists and is no artifact; give another --out")
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _write_artifact(model.eval(), run, calibration or Calibration(run.view.tasks, {}), scratch, rewrite)
        _check_parity(scratch)
        os.chmod(scratch, 0o755)
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return Artifact.open(folder)


def _write_artifact(model: Ranker, run: Run, calibration: Calibration, folder: Path, rewrite: bool) -> None:
    state = write_towers(model, folder, rewrite)
    save_golden(folder / GOLDEN, golden_cases(model))
    calibration.save(folder / CALIBRATION)
    manifest = Manifest(
        created=datetime.now(UTC).replace(microsecond=0),
        arch=model.config.arch,
        source=run.source,
        settings=run.settings,
        view=model.view,
        state=state,
        parameters=_parameters(model),
        metrics=run.epochs[run.best_epoch]["valid"] if run.epochs else {},
        data_span=run.data_span,
        golden_tolerance=GOLDEN_TOLERANCE,
        files={file.name: describe_file(file) for file in sorted(folder.iterdir())},
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n")


def _check_parity(folder: Path) -> None:
    try:
        Engine.load(folder)
    except Exception as error:  # ONNX Runtime's own errors share no base class; each means that the graphs are wrong
        raise ExportError(f"ONNX Runtime does not give what PyTorch gives: {error}") from error


def _parameters(model: Ranker) -> dict[str, int]:
    tables = sum(p.numel() for p in model.tables.parameters())
    return {"dense": sum(p.numel() for p in model.parameters()) - tables, "tables": tables}
