"""How many parameters a variant has, and the expert width that gives it as many as FARM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from feature_store.view import ModelView
from model.config import split_settings
from model.farm import Ranker
from model.train.tables import with_table_rows

TOLERANCE = 0.02  # of FARM's dense parameters, that a variant may be off
GREATEST_WIDTH = 2**13


@dataclass(frozen=True)
class Parameters:
    """Trained numbers of a model."""

    total: int
    tables: int  # of the embedding tables
    dense: int  # all others


def count_parameters(settings: dict[str, Any], view: ModelView) -> Parameters:
    """The parameters of a model, without memory for its embedding tables."""
    config, training = split_settings(settings)
    tables = 0

    def without_rows(module: nn.Module, name: str, weight: nn.Parameter | None) -> nn.Parameter | None:
        nonlocal tables
        if weight is None or not isinstance(module, nn.Embedding):
            return weight
        tables += weight.numel()
        return nn.Parameter(weight[:0].detach().clone())

    # Not torch.device("meta"): that has constants without values too, and drawing from a normal there takes seconds.
    hook = register_module_parameter_registration_hook(without_rows)  # type: ignore[arg-type]  # it may return
    try:
        model = Ranker(config, with_table_rows(view, training.table_rows))
    finally:
        hook.remove()
    dense = sum(weight.numel() for weight in model.parameters())
    return Parameters(tables + dense, tables, dense)


def match_dense(settings: dict[str, Any], view: ModelView, dense: int) -> dict[str, Any]:
    """The settings with the `expert_width` whose model has nearest to `dense` dense parameters.

    They are left as they are when they are within TOLERANCE already.
    """

    def distance(width: int) -> int:
        return abs(dense_at(width) - dense)

    def dense_at(width: int) -> int:
        return count_parameters({**settings, "expert_width": width}, view).dense

    if abs(count_parameters(settings, view).dense - dense) <= TOLERANCE * dense:
        return settings
    low, high = 1, 1  # dense_at grows with the width
    while high < GREATEST_WIDTH and dense_at(high) < dense:
        low, high = high, 2 * high
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if dense_at(middle) < dense else (low, middle)
    return {**settings, "expert_width": min((max(1, low - 1), low), key=distance)}
