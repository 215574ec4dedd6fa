"""Export in a cheaper precision, behind the quality gate."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import onnxruntime as ort

from model.artifact.engine import Engine
from model.artifact.manifest import MANIFEST, Artifact
from model.datasets.prepared import Prepared, whole_folder
from model.export.artifact import export_run
from model.export.gate import DEFAULT_LIMITS, GateReport, Limits, check_quality
from model.export.precision import Precision, write_converted, write_manifest
from model.export.slates import draw_slates
from model.train.run import Run, require_view

QUALITY = "quality.json"  # of an artifact: the report of its gate
_RANGE_SLATES = 64  # of training requests: int8 takes its ranges from them


def export_checked(
    run_folder: str | Path, out: str | Path, precision: Precision, data: Prepared, limits: Limits = DEFAULT_LIMITS
) -> tuple[Artifact, GateReport]:
    """Export a run in another precision, if that loses no more against fp32 than is allowed.

    The report is in the artifact, as quality.json.  Whole or not at all; an existing artifact is replaced.
    GateError when it loses more, ConvertError when it cannot be converted, RunError for data of another view, and what
    `export_run` raises.
    """
    require_view(Run.load(run_folder), data)
    with tempfile.TemporaryDirectory() as scratch:
        return convert_checked(export_run(run_folder, Path(scratch) / "fp32"), out, precision, data, limits)


def convert_checked(
    source: Artifact, out: str | Path, precision: Precision, data: Prepared, limits: Limits = DEFAULT_LIMITS
) -> tuple[Artifact, GateReport]:
    """The same from an fp32 artifact.  data: prepared as the data that the model was trained on."""
    with whole_folder(Path(out), MANIFEST) as folder:
        reads = list(draw_slates(data, "train", _RANGE_SLATES, limits.slate_size, limits.seed))
        write_converted(source, folder, precision, reads)
        report = check_quality(Engine(source), Engine.load(folder, _provider(precision)), data, limits)
        (folder / QUALITY).write_text(json.dumps(report.as_dict(), indent=1) + "\n")
        write_manifest(Artifact.open(folder).manifest, folder)
    return Artifact.open(out), report


def _provider(precision: Precision) -> str:
    """fp16 is judged on CUDA where there is one; the CPU computes it in float32 and rounds between nodes."""
    cuda = precision == "fp16" and "CUDAExecutionProvider" in ort.get_available_providers()
    return "cuda" if cuda else "cpu"
