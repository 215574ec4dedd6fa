"""Adam over the dense weights, and its lazy form over the rows of big tables that a step read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from model.config import TrainConfig
from model.farm import Ranker
from model.train.tables import make_sparse


class Optimisers:
    """AdamW, and SparseAdam when a table has sparse gradients, as one.

    SparseAdam moves a row, and decays its moments, only in the steps that read it.
    """

    def __init__(self, model: Ranker, config: TrainConfig) -> None:
        self.sparse: list[nn.Parameter] = [p for table in make_sparse(model, config) for p in table.parameters()]
        tables = _without(model.tables.parameters(), self.sparse)
        others = _without(model.parameters(), [*model.tables.parameters()])
        groups = [
            {"params": others, "weight_decay": config.weight_decay},
            {"params": tables, "weight_decay": config.table_weight_decay},
        ]
        self.dense: list[nn.Parameter] = [*others, *tables]
        self.parts: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)]
        if self.sparse:
            self.parts.append(torch.optim.SparseAdam(self.sparse, lr=config.learning_rate))

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def state_dict(self) -> list[dict[str, Any]]:
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: Sequence[dict[str, Any]]) -> None:
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def _without(parameters: Any, left_out: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    ids = {id(p) for p in left_out}
    return [p for p in parameters if id(p) not in ids]
