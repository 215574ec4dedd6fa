"""The contrastive loss at its edges; its values are compared in test_equations.py."""

from __future__ import annotations

import pytest
import reference
import torch
from torch import Tensor

from model.align import align_loss

LIVE, VIDEO = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
ALL, DISTINCT = torch.ones(6, dtype=torch.bool), torch.arange(6)


def loss_of(live: Tensor, video: Tensor, users: Tensor = DISTINCT, part: Tensor = ALL, tau: float = 0.07) -> Tensor:
    return align_loss(live, video, users, part, tau)


def test_rows_of_one_user_are_no_negatives_of_each_other() -> None:
    users = torch.tensor([0, 0, 1, 2, 3, 4])
    moved = VIDEO.clone()
    moved[1] = LIVE[0]  # the worst negative that row 0 could have
    expected = reference.align_loss(LIVE.numpy(), moved.numpy(), users.numpy(), ALL.numpy(), 0.07, True)
    assert loss_of(LIVE, moved, users).item() == pytest.approx(expected, rel=1e-5)
    assert loss_of(LIVE, moved, users) < loss_of(LIVE, moved) - 0.5


def test_rows_without_both_histories_take_no_part() -> None:
    part = torch.tensor([True, True, False, True, False, True])
    changed = VIDEO.clone(), LIVE.clone()
    for rows in changed:
        rows[~part] = 100.0
    assert loss_of(LIVE, VIDEO, part=part).item() == loss_of(changed[1], changed[0], part=part).item()
    alone = loss_of(LIVE[part], VIDEO[part], DISTINCT[:4], ALL[:4])
    assert loss_of(LIVE, VIDEO, part=part).item() == pytest.approx(alone.item(), rel=1e-6)


@pytest.mark.parametrize("taking_part", [0, 1])
def test_fewer_than_two_rows_cost_nothing(taking_part: int) -> None:
    live, video = LIVE.clone().requires_grad_(), VIDEO.clone().requires_grad_()
    loss = loss_of(live, video, part=torch.arange(6) < taking_part)
    loss.backward()
    assert loss.item() == 0
    assert live.grad is not None
    assert (live.grad == 0).all()


@pytest.mark.parametrize("part", [ALL, torch.tensor([True, False, True, False, False, True])])
def test_gradients_are_finite_at_zero_and_at_large_preferences(part: Tensor) -> None:
    for scale in (0.0, 1e-20, 1.0, 1e4):
        live, video = (LIVE * scale).requires_grad_(), (VIDEO * scale).requires_grad_()
        align_loss(live, video, DISTINCT, part, 0.07, normalise=scale != 1e4).backward()
        for h in (live, video):
            assert h.grad is not None
            assert h.grad.isfinite().all()


def test_gradients_reach_both_sides_and_half_precision_is_summed_in_float32() -> None:
    live, video = LIVE.clone().requires_grad_(), VIDEO.clone().requires_grad_()
    loss_of(live, video).backward()
    assert live.grad is not None
    assert video.grad is not None
    assert (live.grad.abs().sum(1) > 0).all()
    assert (video.grad.abs().sum(1) > 0).all()
    assert loss_of(LIVE.bfloat16(), VIDEO.bfloat16()).dtype == torch.float32
