"""Export: a trained run to the artifact that serving loads (two ONNX graphs over one set of embedding tables).

The graphs take raw int64 values and give probabilities; `now`, hashing, bucketing and masks are inside.
Letters: U users, L events, T tiles, K candidates of a tile.
"""

from __future__ import annotations

import gc
import logging
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx.external_data_helper import set_external_data
from torch import Tensor, nn
from torch.export import Dim

from feature_store.matrices import UserInputs
from model.artifact.calibration import Calibration
from model.artifact.engine import Engine
from model.artifact.golden import save_golden
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
from model.calibrate import load_calibration
from model.farm import Ranker
from model.golden import golden_cases, random_candidates, random_users
from model.train import Run, load_model

GOLDEN_TOLERANCE = 1e-5
OPSET = 20
_TABLE_NAME = re.compile(r"(?:^|\.)tables\.(\w+)\.weight$")
_INLINE_BYTES = 1024  # weights below it stay in the graph file
_ALIGNMENT = 4096  # of a table's offset, so that it can be memory-mapped


class ExportError(ValueError):
    """The model cannot be exported, or its graphs do not give what PyTorch gives."""


class UserTower(nn.Module):
    """The user half of a ranker as a graph: UserInputs -> the state tensors, in the order of `names`."""

    def __init__(self, model: Ranker, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(
        self, video: Tensor, video_length: Tensor, live: Tensor, live_length: Tensor, user: Tensor, now: Tensor
    ) -> tuple[Tensor, ...]:
        state, _ = self.model.user_state(video, video_length, live, live_length, user, now)
        return tuple(state[name] for name in self.names)


class CandidateTower(nn.Module):
    """The candidate half: state, candidates [T, K, Fc], tile_user [T] -> probabilities [T, K, tasks]."""

    def __init__(self, model: Ranker, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, candidates: Tensor, tile_user: Tensor, state: tuple[Tensor, ...]) -> Tensor:
        named = dict(zip(self.names, state, strict=True))
        return torch.sigmoid(self.model.candidate_logits(named, candidates, tile_user))


def export_run(run_folder: str | Path, out: str | Path) -> Artifact:
    """Export the chosen epoch of a run and its calibration.

    RunError without one, ExportError when parity is not given, CalibrationError when calibration.json is spoilt.
    """
    run, model = load_model(run_folder)
    return export_model(model, run, out, load_calibration(run_folder, run.view.tasks))


def export_model(model: Ranker, run: Run, out: str | Path, calibration: Calibration | None = None) -> Artifact:
    """Write the artifact folder, whole or not at all; an existing artifact is replaced.

    calibration: the identity when not given.
    ExportError when ONNX Runtime and PyTorch differ by more than 1e-5 on a golden case.
    """
    folder = Path(out)
    if folder.exists() and not (folder / MANIFEST).is_file():
        raise ExportError(f"{folder}: exists and is no artifact; give another --out")
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _write_artifact(model.eval(), run, calibration or Calibration(run.view.tasks, {}), scratch)
        _check_parity(scratch)
        os.chmod(scratch, 0o755)
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return Artifact.open(folder)


@torch.inference_mode()
def _write_artifact(model: Ranker, run: Run, calibration: Calibration, folder: Path) -> None:
    users = random_users(model.view, lengths=[(3, 2), (50, 1)], seed=0)
    state, _ = model.user_state(**_tensors(users))
    names = list(state)
    _write_towers(model, users, state, folder)
    save_golden(folder / GOLDEN, golden_cases(model))
    calibration.save(folder / CALIBRATION)
    specs = [TensorSpec(name=n, dtype=str(state[n].numpy().dtype), shape=tuple(state[n].shape[1:])) for n in names]
    manifest = Manifest(
        created=datetime.now(UTC).replace(microsecond=0),
        arch=model.config.arch,
        source=run.source,
        settings=run.settings,
        view=model.view,
        state=tuple(specs),
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


def _tensors(users: UserInputs) -> dict[str, Tensor]:
    return {name: torch.from_numpy(values) for name, values in users.feeds().items()}


def _write_towers(model: Ranker, users: UserInputs, state: dict[str, Tensor], folder: Path) -> None:
    """Both graphs, their dense weights beside them, the tables once."""
    names = list(state)
    inputs = _tensors(users)
    batch: dict[int, Any] = {0: Dim("users")}
    user_tower = _export(UserTower(model, names), inputs, dict.fromkeys(inputs, batch), names)
    candidates = torch.from_numpy(random_candidates(model.view, (3, 4), seed=0))
    reads: dict[str, Any] = {"candidates": candidates, "tile_user": torch.tensor([0, 1, 1])}
    axes: dict[str, Any] = {"candidates": {0: Dim("tiles"), 1: Dim("candidates")}, "tile_user": {0: Dim("tiles")}}
    arguments = {**reads, "state": tuple(state.values())}
    candidate_tower = _export(
        CandidateTower(model, names), arguments, {**axes, "state": tuple(batch for _ in names)}, ["probabilities"]
    )
    offsets = _write_tables(model, folder / TABLES)
    _save(user_tower, folder / USER_TOWER, offsets)
    _save(candidate_tower, folder / CANDIDATE_TOWER, offsets)


def _export(module: nn.Module, inputs: dict[str, Any], axes: dict[str, Any], outputs: list[str]) -> onnx.ModelProto:
    """One graph.  Every input is named in the dynamic shapes: one that is not would silently be frozen."""
    with _quick_and_quiet():
        program = torch.onnx.export(
            module.eval(),
            args=tuple(inputs.values()),
            input_names=_input_names(module, inputs),
            output_names=outputs,
            dynamic_shapes=tuple(axes.values()),
            dynamo=True,
            opset_version=OPSET,
            optimize=True,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


@contextmanager
def _quick_and_quiet() -> Iterator[None]:
    """Trace without garbage collection, which takes a third of the time, and without the exporter's own warnings.

    It warns of torchvision's absence and of axes that share a name, which is meant; what is wrong it raises.
    """
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        gc.enable()
        log.setLevel(level)


def _input_names(module: nn.Module, inputs: dict[str, Any]) -> list[str]:
    if isinstance(module, CandidateTower):
        return ["candidates", "tile_user", *module.names]
    return list(inputs)


def _write_tables(model: Ranker, path: Path) -> dict[str, int]:
    """All embedding tables in one file, float32 little-endian; returns the offset of each by its key."""
    offsets: dict[str, int] = {}
    with path.open("wb") as file:
        for key, table in model.tables.items():
            file.write(b"\0" * (-file.tell() % _ALIGNMENT))
            offsets[key] = file.tell()
            weight = table.weight
            assert isinstance(weight, Tensor)
            file.write(weight.detach().numpy().astype("<f4").tobytes())
    return offsets


def _save(graph: onnx.ModelProto, path: Path, table_offsets: dict[str, int]) -> None:
    """Write a graph: tables point into tables.data, dense weights go to a file beside it, names of tables are kept."""
    _strip(graph)
    data = path.with_suffix(".data")
    with data.open("wb") as file:
        for tensor in graph.graph.initializer:
            raw = onnx.numpy_helper.to_array(tensor).tobytes()
            table = _TABLE_NAME.search(tensor.name)
            if table:
                _refer(tensor, TABLES, table_offsets[table[1]], len(raw))
            elif len(raw) >= _INLINE_BYTES:
                file.write(b"\0" * (-file.tell() % 64))
                offset = file.tell()
                file.write(raw)
                _refer(tensor, data.name, offset, len(raw))
    path.write_bytes(graph.SerializeToString())


def _strip(graph: onnx.ModelProto) -> None:
    """Drop what the exporter noted about its sources: stack traces, with paths of the machine, in every node."""
    graph.ClearField("metadata_props")
    parts = [graph.graph, *graph.graph.node, *graph.graph.value_info, *graph.graph.input, *graph.graph.output]
    for part in [*parts, *graph.graph.initializer]:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def _refer(tensor: onnx.TensorProto, file: str, offset: int, length: int) -> None:
    set_external_data(tensor, file, offset, length)
    tensor.ClearField("raw_data")
    tensor.ClearField("float_data")
