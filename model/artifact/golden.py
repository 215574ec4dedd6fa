"""Golden cases: inputs and the probabilities that PyTorch gave for them, stored with the model.

Letters: U users, T tiles, K candidates of a tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from feature_store.matrices import UserInputs


@dataclass(frozen=True)
class GoldenCase:
    """One run of both towers."""

    users: UserInputs
    candidates: np.ndarray  # [T, K, Fc] int64
    tile_user: np.ndarray  # [T] int64
    probabilities: np.ndarray  # [T, K, tasks] float32


def save_golden(path: Path, cases: list[GoldenCase]) -> None:
    arrays: dict[str, np.ndarray] = {}
    for index, case in enumerate(cases):
        named = {**case.users.feeds(), "candidates": case.candidates, "tile_user": case.tile_user}
        named["probabilities"] = case.probabilities
        arrays |= {f"{index}/{name}": array for name, array in named.items()}
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


def load_golden(path: Path) -> list[GoldenCase]:
    with np.load(path, allow_pickle=False) as file:
        cases: dict[int, dict[str, np.ndarray]] = {}
        for key in file.files:
            index, name = key.split("/")
            cases.setdefault(int(index), {})[name] = file[key]
    return [_case(arrays) for _, arrays in sorted(cases.items())]


def _case(arrays: dict[str, np.ndarray]) -> GoldenCase:
    users = UserInputs(**{name: arrays[name] for name in UserInputs.__dataclass_fields__})
    return GoldenCase(users, arrays["candidates"], arrays["tile_user"], arrays["probabilities"])
