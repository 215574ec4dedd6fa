"""PyTorch against ONNX Runtime, and what must not matter to a score."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Exported

from feature_store.matrices import UserInputs
from feature_store.schema import MISSING
from feature_store.view import ModelView
from model.artifact.engine import Engine
from model.artifact.manifest import Artifact, TensorSpec
from model.export import ExportError, export_model
from model.export import artifact as artifact_module
from model.export.serving import ServingRanker
from model.golden import EDGE_IDS, NOW_2022_MS, NOW_2035_MS, random_candidates, random_users, torch_probabilities
from model.train import load_model

VARIANTS = (
    "arch=farm",
    "arch=ple",
    "video_frequency=off,align=off",
    "live_frequency=off,fuse=off",
)
LENGTHS = list(product((0, 1, 2, 49, 50), repeat=2))  # of both histories, all pairs
CANDIDATES = (1, 2, 199, 2000)
HEADS = ("shared_bottom", "mmoe", "cgc", "adatt")  # PLE is the head of VARIANTS


@pytest.fixture(scope="module", params=VARIANTS)
def exported(request: pytest.FixtureRequest, export_of: Callable[[str], Exported]) -> Exported:
    return export_of(request.param)


def user_groups(view: ModelView) -> Iterator[UserInputs]:
    """25 users with all pairs of lengths, in batches of 7, 2 and 1; times of 2022 and 2035."""
    start = 0
    for seed, size in enumerate((7, 7, 7, 2, 1, 1)):
        lengths = LENGTHS[start : start + size]
        start += size
        yield random_users(view, lengths, seed, now_ms=NOW_2022_MS if seed == 5 else NOW_2035_MS)
    assert start == len(LENGTHS)


def candidates_of(view: ModelView, tiles: int, size: int) -> np.ndarray:
    """The first candidates have every edge among their ids, as far as there is room."""
    matrix = random_candidates(view, (tiles, size), seed=size)
    edges = np.resize(EDGE_IDS, len(EDGE_IDS) * 2)[: matrix.shape[1]]
    for column in ("author_id", "live_id"):
        matrix[0, : len(edges), view.columns("candidate").index(column)] = edges
    return matrix


def scores(engine: Engine, users: UserInputs, candidates: np.ndarray) -> np.ndarray:
    return engine.score(engine.user_state(users), candidates, np.arange(len(candidates), dtype=np.int64))


def assert_parity(model: torch.nn.Module, engine: Engine, sizes: Sequence[int] = CANDIDATES) -> None:
    seen: set[int] = set()
    for users, size in product(user_groups(engine.view), sizes):
        candidates = candidates_of(engine.view, len(users.now), size)
        tile_user = np.arange(len(users.now), dtype=np.int64)
        expected = torch_probabilities(model, users, candidates, tile_user)  # type: ignore[arg-type]
        found = scores(engine, users, candidates)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
        seen |= set(candidates[..., 0].ravel().tolist())
    assert set(EDGE_IDS) <= seen


def test_onnx_runtime_gives_what_pytorch_gives(exported: Exported) -> None:
    assert_parity(exported.model, exported.engine)


@pytest.mark.parametrize("head", HEADS)
def test_onnx_runtime_gives_what_pytorch_gives_of_every_head(export_of: Callable[[str], Exported], head: str) -> None:
    exported = export_of(f"arch={head}")
    assert exported.engine.manifest.arch == head
    assert_parity(exported.model, exported.engine, sizes=(1, 50))


def test_onnx_runtime_gives_what_a_trained_model_gives(run_folder: Path, artifact: Path) -> None:
    _, model = load_model(run_folder)
    assert_parity(model, Engine.load(artifact))


@pytest.mark.parametrize("now", [NOW_2022_MS, NOW_2035_MS, 0])
def test_edges_of_every_user_value(farm: Exported, now: int) -> None:
    """Each column of events and users at each edge, the whole column at once."""
    users = random_users(farm.engine.view, [(50, 50)] * 7, seed=1, now_ms=now)
    users.now[:] = now
    candidates = candidates_of(farm.engine.view, 7, 3)
    for part, matrix in (("video", users.video), ("live", users.live), ("user", users.user)):
        for column, edge in product(range(matrix.shape[-1]), EDGE_IDS):
            changed = matrix.copy()
            changed[..., column] = edge
            inputs = replace(users, **{part: changed})
            expected = torch_probabilities(farm.model, inputs, candidates, np.arange(7))
            np.testing.assert_allclose(scores(farm.engine, inputs, candidates), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("base", [NOW_2022_MS, NOW_2035_MS, 2**41])
def test_the_moments_around_every_hour_and_quantum(farm: Exported, base: int) -> None:
    """The hour's table row and every lag, a millisecond before and after the moments at which they change."""
    hours = base // 3_600_000 * 3_600_000 + 3_600_000 * np.arange(25)[:, None]
    now = (hours + np.array([-60_001, -60_000, -1, 0, 1, 59_999, 60_000])).ravel()
    users = random_users(farm.engine.view, [(12, 12)] * len(now), seed=2, now_ms=base)
    boundaries = next(f.boundaries for f in farm.engine.view.fields("video") if f.kind == "time")
    lags = np.array([*boundaries, 0, 1, 2**31 - 1, 2**31, 2**31 + 60_000, 2**32, -(2**31), -(2**33)])
    column = farm.engine.view.columns("video").index("event_time")
    users.video[:, :12, column] = now[:, None] // 60_000 * 60_000 - np.resize(lags, (len(now), 12))
    users.now[:] = now
    expected = ServingRanker(farm.model).user_state(**{k: torch.from_numpy(v) for k, v in users.feeds().items()})
    for name, found in farm.engine.user_state(users).items():
        wanted = expected[name].detach().numpy()
        np.testing.assert_allclose(found.astype(float), wanted.astype(float), atol=2e-5, rtol=1e-5, err_msg=name)


# What must not matter


@pytest.fixture(scope="module")
def request_of_2000(exported: Exported) -> tuple[Engine, UserInputs, np.ndarray, np.ndarray]:
    """One user with half a history, 2000 candidates, and their scores as one tile."""
    engine = exported.engine
    users = random_users(engine.view, [(20, 7)], seed=3)
    candidates = candidates_of(engine.view, 1, 2000)[0]
    return engine, users, candidates, engine.score_user(engine.user_state(users), candidates)


Request = tuple[Engine, UserInputs, np.ndarray, np.ndarray]


def test_what_stands_in_the_pads(request_of_2000: Request) -> None:
    engine, users, candidates, expected = request_of_2000
    for fill in (0, 1, -1, MISSING, 2**63 - 1, NOW_2035_MS):
        video, live = users.video.copy(), users.live.copy()
        video[:, 20:], live[:, 7:] = fill, fill
        found = engine.score_user(engine.user_state(replace(users, video=video, live=live)), candidates)
        np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)


def test_order_of_candidates(request_of_2000: Request) -> None:
    engine, users, candidates, expected = request_of_2000
    order = np.random.default_rng(0).permutation(2000)
    found = engine.score_user(engine.user_state(users), candidates[order])
    np.testing.assert_allclose(found, expected[order], atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [1, 8, 50, 400])
def test_tiles_that_candidates_share(request_of_2000: Request, size: int) -> None:
    """The same candidates as tiles of `size`, in one batch with tiles of other users, in random order."""
    engine, users, candidates, expected = request_of_2000
    others = random_users(engine.view, [(50, 50), (0, 0)], seed=9)
    both = UserInputs(**{k: np.concatenate([getattr(others, k), v]) for k, v in users.feeds().items()})
    tiles = np.concatenate([candidates.reshape(-1, size, candidates.shape[1]), candidates[None, :size]])
    tile_user = np.full(len(tiles), 2)
    tile_user[-1] = 0
    order = np.random.default_rng(size).permutation(len(tiles))
    found = np.empty((len(tiles), size, expected.shape[1]), np.float32)
    found[order] = engine.score(engine.user_state(both), tiles[order], tile_user[order])
    np.testing.assert_allclose(found[:-1].reshape(expected.shape), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [1, 3, 199, 1999])
def test_splitting_candidates_over_requests(request_of_2000: Request, size: int) -> None:
    engine, users, candidates, expected = request_of_2000
    for start in range(0, 2000, size if size > 50 else 97 * size):
        found = engine.score_user(engine.user_state(users), candidates[start : start + size])
        np.testing.assert_allclose(found, expected[start : start + size], atol=1e-6, rtol=0)


def test_scores_do_depend_on_what_they_should(request_of_2000: Request) -> None:
    """So that the comparisons above are of something."""
    engine, users, candidates, expected = request_of_2000
    assert (expected.std(axis=0) > 1e-3).all()
    for change in ({"user": users.user + 1}, {"video_length": users.video_length - 1}, {"now": users.now + 3_600_000}):
        found = engine.score_user(engine.user_state(replace(users, **change)), candidates)
        assert np.abs(found - expected).max() > 1e-4


def test_a_kept_user_state_is_a_fresh_one_within_the_quantum(exported: Exported) -> None:
    engine = exported.engine
    quantum = engine.view.lag_quantum_s * 1000
    for start in (NOW_2022_MS // quantum * quantum, NOW_2035_MS // quantum * quantum):
        users = random_users(engine.view, [(50, 50), (3, 1)], seed=4, now_ms=start)
        users.now[:] = start
        kept = engine.user_state(users)
        for later in (1, 1_000, quantum - 1):
            fresh = engine.user_state(replace(users, now=users.now + later))
            assert all(np.array_equal(kept[name], fresh[name]) for name in kept)
        late = engine.user_state(replace(users, now=users.now + 60 * quantum))
        assert any(not np.array_equal(kept[name], late[name]) for name in kept)


# Refusals


@pytest.fixture
def towers_of_farm(farm: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """Export writes FARM's towers as they were exported before, so that it takes no time."""

    def copy(_model: object, folder: Path, _rewrite: bool) -> tuple[TensorSpec, ...]:
        for file in farm.path.iterdir():
            if file.suffix in (".onnx", ".data"):
                shutil.copy(file, folder)
        return farm.engine.manifest.state

    monkeypatch.setattr(artifact_module, "write_towers", copy)


@pytest.mark.usefixtures("towers_of_farm")
def test_export_refuses_graphs_that_differ_from_pytorch(farm: Exported, tmp_path: Path) -> None:
    """The weights change by a little between the graphs and PyTorch's golden outputs."""
    weight = farm.model.head.towers[2][3].bias  # type: ignore[index]
    with torch.no_grad():
        weight += 1e-3
    try:
        with pytest.raises(ExportError, match=r"golden case 0: .* differ by .* allowed is 1e-05"):
            export_model(farm.model, farm.run, tmp_path / "artifact")
    finally:
        with torch.no_grad():
            weight -= 1e-3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("towers_of_farm")
def test_a_refused_export_leaves_the_artifact_before_it(farm: Exported, tmp_path: Path) -> None:
    made = export_model(farm.model, farm.run, tmp_path / "artifact")
    again = export_model(farm.model, replace(farm.run, source="again"), tmp_path / "artifact")
    assert again.version != made.version
    (farm.model.head.towers[0][3].bias.data).add_(0.1)  # type: ignore[index,union-attr]
    try:
        with pytest.raises(ExportError):
            export_model(farm.model, farm.run, tmp_path / "artifact")
    finally:
        (farm.model.head.towers[0][3].bias.data).sub_(0.1)  # type: ignore[index,union-attr]
    assert Artifact.open(tmp_path / "artifact").version == again.version
    assert os.listdir(tmp_path) == ["artifact"]


def test_a_folder_of_something_else_is_refused(farm: Exported, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ExportError, match="is no artifact"):
        export_model(farm.model, farm.run, tmp_path)
    assert os.listdir(tmp_path) == ["thesis.tex"]
