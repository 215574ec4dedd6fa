"""The provider that was asked for is the one in use, or the engine says so."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest

from model.artifact.engine import Engine, EngineError


def test_the_provider_in_use_is_reported(artifact: Path) -> None:
    assert Engine.load(artifact).provider == "cpu"


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="CUDA is here")
def test_cuda_is_refused_where_it_is_not_instead_of_running_on_the_cpu(artifact: Path) -> None:
    with pytest.raises(EngineError, match="provider cuda"):
        Engine.load(artifact, provider="cuda")
