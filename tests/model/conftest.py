"""Models with weights that matter: every weight drawn anew, so that no gate sits at one half and no bias at zero."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from feature_store.schema import default_schema
from feature_store.view import ModelView
from model.artifact.engine import Engine
from model.config import ModelConfig
from model.datasets.logs import default_view
from model.export import export_model
from model.farm import Ranker
from model.frequency import FrequencyModule, basis_table
from model.train import Run

MakeModel = Callable[..., Ranker]

settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def view() -> ModelView:
    """The paper's fields, an hour that is not UTC's."""
    return default_view(utc_offset_s=8 * 3600)


def drawn_anew(module: torch.nn.Module, seed: int) -> None:
    """Weights from N(0, 1 / inputs), biases and embedding tables from N(0, 1/4)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            scale = weight.shape[1] ** -0.5 if weight.ndim == 2 and "tables" not in name else 0.5
            weight.copy_(torch.randn(weight.shape, generator=generator) * scale)


@pytest.fixture(scope="session")
def make_model(view: ModelView) -> MakeModel:
    """make_model(seed=0, **fields of ModelConfig) -> a float64 model in eval mode, its basis in float64 too."""

    def make(seed: int = 0, view: ModelView = view, **switches: Any) -> Ranker:
        model = Ranker(ModelConfig(**switches), view)
        drawn_anew(model, seed)
        model = model.double().eval()
        for module in model.modules():
            if isinstance(module, FrequencyModule):
                config = model.config
                module.table = basis_table(view.history_length, config.cutoff, config.spectrum)
        return model

    return make


@dataclass(frozen=True)
class Exported:
    """A float32 model, and the same as an artifact."""

    model: Ranker
    run: Run
    engine: Engine

    @property
    def path(self) -> Path:
        return self.engine.artifact.path


@pytest.fixture(scope="session")
def export_of(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """export_of("arch=ple") -> that model exported, once a session: tracing takes seconds."""

    @cache
    def export(switches: str) -> Exported:
        pairs = [pair.split("=") for pair in switches.split(",")]
        model = make_model(seed=5, **{k: v if k == "arch" else v == "on" for k, v in pairs}).float()
        run = Run({}, model.view, default_schema(), "test", {"first_ms": 0, "last_ms": 1})
        made = export_model(model, run, tmp_path_factory.mktemp("exports") / "artifact")
        return Exported(model, run, Engine.load(made.path))

    return export


@pytest.fixture(scope="session")
def farm(export_of: Callable[[str], Exported]) -> Exported:
    return export_of("arch=farm")
