"""Nothing that serves or trains unpickles: a file from elsewhere is data and never code."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import model
from model.artifact.golden import load_golden

ROOT = Path(model.__file__).parents[1]
ROOMS = ("feature_store", "model", "service", "loadtest")
SOURCES = [ROOT / "farm.py", *(path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")))]
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def problems(source: str) -> Iterator[str]:
    """Imports of what unpickles, and calls that would allow it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None) or ""
            named = {module.split(".")[0], *(alias.name.split(".")[0] for alias in node.names)}
            yield from sorted(named & UNPICKLERS)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield from _call_problems(node, ast.unparse(node.func))


def _call_problems(node: ast.Call, name: str) -> Iterator[str]:
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    if name == "np.load" and given.get("allow_pickle", "False") != "False":
        yield "np.load(allow_pickle)"
    if name == "torch.load" and given.get("weights_only") != "True":
        yield "torch.load without weights_only=True"
    if name.endswith(".read_pickle"):
        yield name


def test_no_source_unpickles() -> None:
    assert len(SOURCES) > 200
    found = {str(path.relative_to(ROOT)): list(problems(path.read_text())) for path in SOURCES}
    assert {path: what for path, what in found.items() if what} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import numpy, joblib.x",
        "from pickle import loads",
        "np.load(file, allow_pickle=True)",
        "np.load(file, allow_pickle=choice)",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "pandas.read_pickle(file)",
    ],
)
def test_what_would_unpickle_is_found(source: str) -> None:
    assert len(list(problems(source))) == 1


class _Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_golden_outputs_that_hold_objects_are_refused_unread(tmp_path: Path) -> None:
    bomb = np.array([_Bomb(tmp_path / "exploded")], dtype=object)
    np.savez(tmp_path / "golden.npz", **{"0/probabilities": bomb})
    with pytest.raises(ValueError, match="allow_pickle=False"):
        load_golden(tmp_path / "golden.npz")
    assert not (tmp_path / "exploded").exists()
    with np.load(tmp_path / "golden.npz", allow_pickle=True) as file:
        assert file["0/probabilities"].shape == (1,)
    assert (tmp_path / "exploded").exists()  # so it was no dud
