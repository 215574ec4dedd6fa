"""Attention that starts by looking for equals: logits of equal rows, of others, and of the sink."""

from __future__ import annotations

import pytest
import torch

from feature_store.view import ModelView
from model.config import ModelConfig
from model.farm import MASKS, Ranker
from model.matching import field_columns, shared_columns

TABLE_STD = 0.2


@pytest.fixture(scope="module")
def fresh(view: ModelView) -> Ranker:
    torch.manual_seed(0)
    return Ranker(ModelConfig(match_logit=6.0), view, TABLE_STD).eval()


def test_the_columns_of_shared_tables(view: ModelView) -> None:
    candidate, video = field_columns(view, "candidate"), field_columns(view, "video")
    assert candidate["author_id"] == slice(0, 24)
    assert [key for _, key in shared_columns(view, "candidate", "video")] == [video["author_id"], video["tag"]]
    assert len(list(shared_columns(view, "candidate", "live"))) == 3  # author, tag, cluster


@pytest.mark.parametrize("name", ["video", "live", "cross"])
@pytest.mark.parametrize("table", ["author_id", "tag"])
def test_an_equal_row_starts_with_the_logit_and_others_near_zero(fresh: Ranker, name: str, table: str) -> None:
    assert fresh.farm is not None
    view, heads = fresh.view, fresh.config.heads
    rows = TABLE_STD * torch.randn(400, view.fields("candidate")[0].width if table == "author_id" else 16)
    part = list(fresh.farm.targets).index(name)
    query = fresh.query_candidate.weight.chunk(3)[part][:, field_columns(view, "candidate")[table]]
    target = fresh.farm.targets[name]
    key = target.projections.key.weight[:, field_columns(view, MASKS[name])[table]]  # type: ignore[union-attr]
    head = list(dict.fromkeys(("author_id", "tag"))).index(table)
    width = len(key) // heads
    cut = slice(head * width, (head + 1) * width)
    logits = (rows @ query[cut].T) @ (rows @ key[cut].T).T / width**0.5  # [400, 400]
    same = logits.diagonal()
    others = logits[~torch.eye(400, dtype=torch.bool)]
    assert same.mean().item() == pytest.approx(6.0, rel=0.1)
    assert abs(others.mean().item()) < 0.2
    assert others.std() < 0.4 * same.mean()


def test_the_sink_has_a_logit_of_its_own(fresh: Ranker) -> None:
    """Whatever the candidate and the user, before anything is learnt."""
    assert fresh.farm is not None
    heads, width = fresh.config.heads, fresh.config.head_width
    query = fresh.query_candidate(torch.randn(50, fresh.candidate_embedding.width)) + fresh.query_user.bias
    for part, target in zip(query.chunk(3, -1), fresh.farm.targets.values(), strict=True):
        sink = target.projections.sink_key  # type: ignore[union-attr]
        logits = (part.view(50, heads, 1, width) @ sink).squeeze()
        torch.testing.assert_close(logits, torch.full((50, heads), 6.0), atol=1.5, rtol=0)


def test_off_leaves_the_projections_apart(view: ModelView) -> None:
    torch.manual_seed(0)
    plain = Ranker(ModelConfig(match_logit=0.0), view, TABLE_STD)
    assert plain.farm is not None
    key = plain.farm.targets["video"].projections.key.weight  # type: ignore[union-attr]
    assert not torch.equal(plain.query_candidate.weight.chunk(3)[0][:16, :24], key[:16, :24])


def test_values_start_with_what_happened(fresh: Ranker) -> None:
    """What was looked for is known to who asked: its columns weigh nothing at first."""
    assert fresh.farm is not None
    for name, target in fresh.farm.targets.items():
        weight = target.projections.value.weight  # type: ignore[union-attr]
        known = [columns for _, columns in shared_columns(fresh.view, "candidate", MASKS[name])]
        assert all((weight[:, columns] == 0).all() for columns in known)
        rest = weight.shape[1] - sum(columns.stop - columns.start for columns in known)
        assert weight.std().item() * TABLE_STD * weight.shape[1] ** 0.5 == pytest.approx(1.0, rel=0.15), rest


def test_preferences_of_histories_that_name_the_same_start_alike(fresh: Ranker, view: ModelView) -> None:
    """h_video and h_live of the same authors are nearer than of others, before anything is learnt."""
    assert fresh.farm is not None
    video, live = fresh.farm.video_preference, fresh.farm.live_preference
    assert video is not None
    assert live is not None
    authors = TABLE_STD * torch.randn(200, 24) / 50**0.5  # of a mean over 50 events
    of_video, of_live = torch.zeros(200, view.width("video")), torch.zeros(200, view.width("live"))
    of_video[:, field_columns(view, "video")["author_id"]] = authors
    of_live[:, field_columns(view, "live")["author_id"]] = authors
    h_video, h_live = (torch.nn.functional.normalize(p.mlp(x)) for p, x in ((video, of_video), (live, of_live)))
    cosines = h_video @ h_live.T
    assert cosines.diagonal().min() > 0.99
    assert cosines.mean() < 0.8


def test_filters_start_near_a_high_pass(fresh: Ranker, view: ModelView) -> None:
    """Equal events keep most of their logit."""
    assert fresh.farm is not None
    for part, filters in (("video", fresh.farm.video_frequency), ("live", fresh.farm.live_frequency)):
        assert filters is not None
        x = TABLE_STD * torch.randn(20, view.history_length, view.width(part))
        low, high = filters.gates(x, torch.ones(20, view.history_length, dtype=torch.bool))
        assert low.max() < 0.3
        assert high.min() > 0.8


def test_buckets_of_a_number_start_in_order(fresh: Ranker) -> None:
    """Each further bucket but one lies farther along a line, in every model that starts so."""
    for model in (fresh, Ranker(ModelConfig(arch="ple"), fresh.view, TABLE_STD)):
        rows = model.tables["video_play_time"].weight[1:]  # type: ignore[index]
        places = (rows - rows[0]) @ (rows[-1] - rows[0])
        assert (places[2:] > places[:-2]).all()


def test_without_the_logit_all_starts_at_random(view: ModelView) -> None:
    torch.manual_seed(0)
    model = Ranker(ModelConfig(match_logit=0.0), view, TABLE_STD)
    rows = model.tables["video_play_time"].weight[1:]  # type: ignore[index]
    places = (rows - rows[0]) @ (rows[-1] - rows[0])
    assert not (places[2:] > places[:-2]).all()
