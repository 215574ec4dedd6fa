"""The serving form of a model against the model: every rewrite is exact, in float64 and for every configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import Exported, MakeModel
from torch import Tensor

from feature_store.matrices import UserInputs
from feature_store.view import ModelView, ViewField
from model.embedding import PartEmbedding, make_tables
from model.export import export_model
from model.export.lookups import Lookups
from model.export.serving import ServingRanker
from model.farm import Ranker
from model.golden import EDGE_IDS, NOW_2022_MS, random_candidates, random_users

LENGTHS = [(0, 0), (50, 50), (3, 0), (0, 7), (49, 1)]
HEADS: list[dict[str, Any]] = [
    *({"arch": name} for name in ("shared_bottom", "mmoe", "cgc", "ple", "adatt")),
    *({"multitask": name} for name in ("shared_bottom", "mmoe", "cgc", "ple", "adatt")),
    {"task_experts": 2},
    {"task_experts": 0},
    {"shared_experts": 0},
    {"levels": 1},
    {"levels": 3},
    {"multitask": "shared_bottom", "levels": 1},
    {"multitask": "adatt", "task_experts": 2, "levels": 3},
]
ABLATIONS: list[dict[str, Any]] = [
    *({name: False} for name in ("video_frequency", "live_frequency", "align", "fuse", "residual", "sink")),
    {"video_frequency": False, "live_frequency": False},
    {"fuse": False, "align": False},
    {"residual": False, "sink": False, "video_frequency": False},
    {"spectrum": "padded", "cutoff": 9},
    {"heads": 2, "head_width": 8, "match_logit": 0.0},
]


def reads(view: ModelView, seed: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Users with and without events, seven tiles of them; some values are missing or extreme."""
    users = random_users(view, LENGTHS, seed)
    candidates = torch.from_numpy(random_candidates(view, (7, 5), seed))
    tile_user = torch.tensor([0, 1, 2, 3, 4, 1, 0])
    return {name: torch.from_numpy(array) for name, array in users.feeds().items()}, candidates, tile_user


@torch.no_grad()
def both(model: Ranker, view: ModelView, seed: int = 2) -> tuple[Tensor, Tensor]:
    users, candidates, tile_user = reads(view, seed)
    state, _ = model.user_state(**users)
    expected = torch.sigmoid(model.candidate_logits(state, candidates, tile_user))
    form = ServingRanker(model).eval()
    return expected, form.probabilities(form.user_state(**users), candidates, tile_user)


@pytest.mark.parametrize("switches", [{}, *HEADS, *ABLATIONS], ids=str)
def test_the_serving_form_is_the_model(make_model: MakeModel, view: ModelView, switches: dict[str, Any]) -> None:
    expected, found = both(make_model(seed=3, **switches), view)
    assert (expected.std(dim=(0, 1)) > 1e-3).all()  # so that the comparison is of something
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("context", [True, False])
def test_views_of_other_shapes(make_model: MakeModel, context: bool) -> None:
    """A user of two kinds of fields or of none but the id, one task, histories of seven events."""
    wide = ModelView(
        history_length=50,
        tasks=("ctr",),
        video=(ViewField(name="play_time", kind="number", width=3, boundaries=(1, 10)),),
        live=(ViewField(name="author_id", kind="id", width=4, rows=50, table="author_id"),),
        candidate=(
            ViewField(name="duration", kind="number", width=2, boundaries=(5, 9, 70)),
            ViewField(name="author_id", kind="id", width=4, rows=50, table="author_id"),
        ),
        user=(ViewField(name="user_id", kind="id", width=4, rows=9),),
        context=(ViewField(name="hour", kind="hour", width=2),) if context else (),
    )
    expected, found = both(make_model(seed=4, view=wide, match_logit=0.0), wide)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


def test_the_state_is_the_user_s_alone(make_model: MakeModel, view: ModelView) -> None:
    """A user's state in a batch, and by itself."""
    form = ServingRanker(make_model(seed=3)).eval()
    users, *_ = reads(view, seed=2)
    with torch.no_grad():
        together = form.user_state(**users)
        for user in range(len(LENGTHS)):
            alone = form.user_state(**{name: values[user : user + 1] for name, values in users.items()})
            for name, values in alone.items():
                torch.testing.assert_close(values[0], together[name][user], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("part", ["video", "live", "candidate", "user", "context"])
def test_lookups_of_every_edge(view: ModelView, part: Any) -> None:
    """Every column at every edge id, and around every boundary: bit for bit what `PartEmbedding` gives."""
    tables = make_tables(view, std=1.0)
    plain = PartEmbedding(view, part, tables, {"other": 0.0}).eval()
    boundaries = {edge for field in view.fields(part) for edge in field.boundaries}
    edges = sorted({*EDGE_IDS, *boundaries, *(b - 1 for b in boundaries), *(NOW_2022_MS - b for b in boundaries)})
    matrix = torch.tensor(edges)[:, None].repeat(1, len(view.columns(part)))  # [N, F]
    now = torch.full((len(edges),), NOW_2022_MS)
    (found,) = Lookups([plain], axes=1)(matrix.T, now)
    assert torch.equal(found, plain(matrix, now))


# Graphs


def test_the_plain_graphs_are_the_model_too(farm: Exported, tmp_path: Path) -> None:
    """`rewrite` off: parity is checked at export, the state is that of the model as it was trained."""
    plain = export_model(farm.model, farm.run, tmp_path / "plain", rewrite=False)
    assert "video_keys" in {spec.name for spec in plain.manifest.state}
    assert nodes(plain.path) > 2 * nodes(farm.path)


def test_what_a_rewritten_artifact_holds(farm: Exported) -> None:
    """State in the candidate tower's layout, tables once, and no shapes that would let a softmax run in place."""
    state = {spec.name: spec.shape for spec in farm.engine.manifest.state}
    heads, slots = 3 * 4, 51
    assert state == {"keys": (heads, 17, slots), "values": (heads, slots, 16), "head_user": (8 * 65 + 8 * 8,)}
    for tower in ("user_tower", "candidate_tower"):
        graph = onnx.load(farm.path / f"{tower}.onnx", load_external_data=False).graph
        assert len(graph.value_info) == 0
        assert graph.input[0].type.tensor_type.shape.dim[0].dim_param
    tables = sum(table.weight.nbytes for table in farm.model.tables.values())
    assert tables <= (farm.path / "tables.data").stat().st_size <= tables + 4096 * len(farm.model.tables)
    assert (farm.path / "candidate_tower.data").stat().st_size < 4 * farm.engine.manifest.parameters["dense"]


def nodes(artifact: Path) -> int:
    return len(onnx.load(artifact / "candidate_tower.onnx", load_external_data=False).graph.node)


def test_a_tile_gives_the_same_alone_and_among_others(farm: Exported) -> None:
    """One user's candidates as one tile, and as the second of three."""
    view = farm.engine.view
    state = farm.engine.user_state(random_users(view, [(50, 2), (7, 50)], seed=1))
    candidates = random_candidates(view, (3, 32), seed=1)
    together = farm.engine.score(state, candidates, np.array([1, 0, 1]))
    alone = farm.engine.score(state, candidates[1:2], np.array([0]))
    np.testing.assert_allclose(together[1], alone[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("switches", ["arch=farm", "arch=ple"])
def test_a_user_s_state_is_bit_for_bit_the_same_in_every_batch(
    export_of: Callable[[str], Exported], switches: str
) -> None:
    """Two hundred users alone, and shuffled into batches of 1 to 16."""
    engine = export_of(switches).engine
    rng = np.random.default_rng(0)
    lengths = [(int(video), int(live)) for video, live in rng.integers(0, 51, (200, 2))]
    users = random_users(engine.view, lengths, seed=7).feeds()

    def state(rows: Any) -> dict[str, np.ndarray]:
        return engine.user_state(UserInputs(**{name: values[rows] for name, values in users.items()}))

    alone = [state([row]) for row in range(200)]
    for size in range(1, 17):
        for rows in np.array_split(rng.permutation(200)[: 200 // size * size], 200 // size):
            for name, values in state(rows).items():
                expected = np.concatenate([alone[row][name] for row in rows])
                assert np.array_equal(values, expected), (name, size)
