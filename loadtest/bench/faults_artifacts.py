"""Artifacts to serve and to refuse: models that differ, and ones that are spoilt in one way each."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from loadtest.bench.untrained import untrained
from model.artifact.manifest import CANDIDATE_TOWER, MANIFEST, TABLES, Artifact, describe_file

Poison = Literal["fails", "nan"]

_OUT, _CLEAN = "probabilities", "clean_probabilities"
_BEYOND = 10**6  # an index that a table of one row does not have


def another_model(folder: Path, seed: int) -> Path:
    """The artifact of an untrained FARM with weights of the seed, below `folder`, where it is made only once."""
    import torch

    place = folder / f"untrained-{seed}"
    artifact = place / "artifact"  # appears when it is whole
    if not artifact.exists():
        torch.manual_seed(seed)
        untrained(place)
    return artifact


def poisoned(artifact: Path, folder: Path, author_id: int, how: Poison) -> Path:
    """A copy in which one author makes the candidate tower fail, or its own probabilities NaN.

    Golden outputs and checksums are right: nothing but that author shows it.
    """
    copy = _copied(artifact, folder)
    opened = Artifact.open(copy)
    column = opened.manifest.view.columns("candidate").index("author_id")
    graph = onnx.load(copy / CANDIDATE_TOWER, load_external_data=False)
    _poison(graph.graph, column, author_id, how)
    onnx.save(graph, copy / CANDIDATE_TOWER)
    _sign(copy, opened)
    return copy


def corrupted(artifact: Path, folder: Path) -> Path:
    """A copy in which one bit is another than its manifest says."""
    copy = _copied(artifact, folder)
    content = bytearray((copy / TABLES).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / TABLES).write_bytes(content)
    return copy


def all_nan(artifact: Path, folder: Path) -> Path:
    """A copy whose every embedding is NaN; its checksums are right."""
    copy = _copied(artifact, folder)
    opened = Artifact.open(copy)
    numbers = np.fromfile(copy / TABLES, "<f4")
    np.full_like(numbers, np.nan).tofile(copy / TABLES)
    _sign(copy, opened)
    return copy


def incompatible(artifact: Path, folder: Path) -> Path:
    """A copy that reads a column of videos which no store has; its checksums are right."""
    copy = _copied(artifact, folder)
    text = (copy / MANIFEST).read_text()
    assert '"column": "event_time"' in text, "no field reads event_time"
    (copy / MANIFEST).write_text(text.replace('"column": "event_time"', '"column": "event_mood"'))
    Artifact.open(copy)
    return copy


def _copied(artifact: Path, folder: Path) -> Path:
    return Path(shutil.copytree(artifact, folder / "artifact"))


def _sign(copy: Path, opened: Artifact) -> None:
    """Make the manifest say what the files are now."""
    files = {name: describe_file(copy / name) for name in opened.manifest.files}
    manifest = opened.manifest.model_copy(update={"files": files})
    (copy / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n")


def _poison(graph: onnx.GraphProto, column: int, author_id: int, how: Poison) -> None:
    """probabilities = clean + (0, or what the author makes of it).  T tiles, K candidates, F columns."""
    for node in graph.node:
        node.output[:] = [_CLEAN if name == _OUT else name for name in node.output]
        node.input[:] = [_CLEAN if name == _OUT else name for name in node.input]
    constants: dict[str, np.ndarray] = {
        "poison_column": np.array(column, np.int64),
        "poison_author": np.array(author_id, np.int64),
        "poison_zero": np.zeros(1, np.float32),
    }
    if how == "fails":
        constants["poison_beyond"] = np.array([_BEYOND], np.int64)
    else:
        constants |= {"poison_nan": np.full(1, np.nan, np.float32), "poison_last": np.array([-1], np.int64)}
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    graph.node.extend(
        [
            helper.make_node("Gather", ["candidates", "poison_column"], ["poison_ids"], axis=2),  # [T, K]
            helper.make_node("Equal", ["poison_ids", "poison_author"], ["poison_hit"]),  # [T, K]
            *(_failing() if how == "fails" else _not_a_number()),
            helper.make_node("Add", [_CLEAN, "poison"], [_OUT]),
        ]
    )


def _failing() -> list[onnx.NodeProto]:
    """Looks up a row that is not there when the author is anywhere in the batch."""
    return [
        helper.make_node("Cast", ["poison_hit"], ["poison_ones"], to=TensorProto.INT64),
        helper.make_node("ReduceMax", ["poison_ones"], ["poison_any"], keepdims=0),
        helper.make_node("Mul", ["poison_any", "poison_beyond"], ["poison_row"]),  # [1]
        helper.make_node("Gather", ["poison_zero", "poison_row"], ["poison"], axis=0),  # [1]
    ]


def _not_a_number() -> list[onnx.NodeProto]:
    """NaN for the author's own row."""
    return [
        helper.make_node("Where", ["poison_hit", "poison_nan", "poison_zero"], ["poison_rows"]),  # [T, K]
        helper.make_node("Unsqueeze", ["poison_rows", "poison_last"], ["poison"]),  # [T, K, 1]
    ]
