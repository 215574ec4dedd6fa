"""Both towers of a model as ONNX graphs.

The graphs take raw int64 values and give probabilities; `now`, hashing, bucketing and masks are inside.
Letters: U users, L events, T tiles, K candidates of a tile.
"""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim

from feature_store.matrices import UserInputs
from model.artifact.manifest import CANDIDATE_TOWER, TABLES, USER_TOWER, TensorSpec
from model.export.serving import ServingRanker
from model.export.write import save_graph, write_tables
from model.farm import Ranker
from model.golden import random_candidates, random_users

OPSET = 20


class PlainRanker(nn.Module):
    """A ranker as it was trained, behind the interface of `ServingRanker`."""

    def __init__(self, model: Ranker) -> None:
        super().__init__()
        self.model = model

    def user_state(self, **inputs: Tensor) -> dict[str, Tensor]:
        state, _ = self.model.user_state(**inputs)
        return state

    def probabilities(self, state: dict[str, Tensor], candidates: Tensor, tile_user: Tensor) -> Tensor:
        return torch.sigmoid(self.model.candidate_logits(state, candidates, tile_user))


class UserTower(nn.Module):
    """The user half of a ranker as a graph: UserInputs -> the state tensors, in the order of `names`."""

    def __init__(self, model: PlainRanker | ServingRanker, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(
        self, video: Tensor, video_length: Tensor, live: Tensor, live_length: Tensor, user: Tensor, now: Tensor
    ) -> tuple[Tensor, ...]:
        state = self.model.user_state(
            video=video, video_length=video_length, live=live, live_length=live_length, user=user, now=now
        )
        return tuple(state[name] for name in self.names)


class CandidateTower(nn.Module):
    """The candidate half: state, candidates [T, K, Fc], tile_user [T] -> probabilities [T, K, tasks]."""

    def __init__(self, model: PlainRanker | ServingRanker, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, candidates: Tensor, tile_user: Tensor, state: tuple[Tensor, ...]) -> Tensor:
        return self.model.probabilities(dict(zip(self.names, state, strict=True)), candidates, tile_user)


@torch.inference_mode()
def write_towers(model: Ranker, folder: Path, rewrite: bool) -> tuple[TensorSpec, ...]:
    """Both graphs, their dense weights beside them, the tables once; returns what the user state is.

    rewrite: the serving form of the model, not the plain one.
    """
    form = ServingRanker(model) if rewrite else PlainRanker(model)
    inputs = _tensors(random_users(model.view, lengths=[(3, 2), (50, 1)], seed=0))
    state = form.eval().user_state(**inputs)
    names = list(state)
    batch: dict[int, Any] = {0: Dim("users")}
    user_tower = _export(UserTower(form, names), inputs, dict.fromkeys(inputs, batch), names)
    candidates = torch.from_numpy(random_candidates(model.view, (3, 4), seed=0))
    reads: dict[str, Any] = {"candidates": candidates, "tile_user": torch.tensor([0, 1, 1])}
    axes: dict[str, Any] = {"candidates": {0: Dim("tiles"), 1: Dim("candidates")}, "tile_user": {0: Dim("tiles")}}
    arguments = {**reads, "state": tuple(state.values())}
    candidate_tower = _export(
        CandidateTower(form, names), arguments, {**axes, "state": tuple(batch for _ in names)}, ["probabilities"]
    )
    offsets = write_tables(model, folder / TABLES)
    save_graph(user_tower, folder / USER_TOWER, offsets, shapes=not rewrite)
    save_graph(candidate_tower, folder / CANDIDATE_TOWER, offsets, shapes=not rewrite)
    return tuple(TensorSpec(name=n, dtype=str(t.numpy().dtype), shape=tuple(t.shape[1:])) for n, t in state.items())


def _tensors(users: UserInputs) -> dict[str, Tensor]:
    return {name: torch.from_numpy(values) for name, values in users.feeds().items()}


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
