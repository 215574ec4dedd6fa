"""The multi-task head: who sees which expert, with one level and more, and the split of its first product."""

from __future__ import annotations

import pytest
import torch
from conftest import drawn_anew

from model.config import ModelConfig
from model.multitask import PLE, ExpertLayout, FirstLevel, Mixture, NextLevel

TASKS, OWN, SHARED = 3, 2, 2
LAYOUT = ExpertLayout(TASKS, OWN, SHARED)
OWNERS = torch.tensor([0, 0, 1, 1, 2, 2, TASKS, TASKS])  # of each expert


def gate_weights(with_shared_gate: bool, scale: float = 1.0) -> torch.Tensor:
    """[N, gates, E]: with experts that are unit vectors, a mixture is its weights."""
    mixture = Mixture(LAYOUT, with_shared_gate)
    gates = TASKS + with_shared_gate
    logits = scale * torch.randn(5, gates, LAYOUT.experts, generator=torch.Generator().manual_seed(0))
    return mixture(logits, torch.eye(LAYOUT.experts).expand(5, -1, -1))


@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("with_shared_gate", [False, True])
def test_gates_sum_to_one_and_see_only_own_and_shared_experts(with_shared_gate: bool, scale: float) -> None:
    weights = gate_weights(with_shared_gate, scale)
    assert weights.shape[1] == TASKS + with_shared_gate
    torch.testing.assert_close(weights.sum(-1), torch.ones(5, weights.shape[1]))
    for task in range(TASKS):
        seen = torch.isin(OWNERS, torch.tensor([task, TASKS]))
        assert (weights[:, task, ~seen] == 0).all()
        if scale == 1.0:
            assert (weights[:, task, seen] > 0).all()


def test_the_shared_gate_sees_all_experts() -> None:
    assert (gate_weights(with_shared_gate=True)[:, TASKS] > 0).all()


def test_other_tasks_experts_do_not_reach_a_task_in_one_level() -> None:
    level = NextLevel(LAYOUT, 8, with_shared_gate=False)
    groups = torch.randn(4, TASKS + 1, 8)
    changed = groups.clone()
    changed[:, 1] += 1.0
    before, after = level(groups), level(changed)
    assert before.shape == (4, TASKS, 8)
    assert torch.equal(before[:, [0, 2]], after[:, [0, 2]])
    assert not torch.equal(before[:, 1], after[:, 1])


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_tasks_meet_through_the_shared_gate_only(levels: int) -> None:
    """Experts of another task reach a task only through a shared gate, so from two levels on."""
    head = PLE(ModelConfig(levels=levels, expert_width=8), TASKS, 6, 5).double().eval()
    drawn_anew(head, seed=0)
    generator = torch.Generator().manual_seed(0)
    candidate, user = torch.randn(10, 11, generator=generator, dtype=torch.float64).split((6, 5), dim=1)
    before = head(candidate, head.user_part(user))
    assert before.shape == (10, TASKS)
    with torch.no_grad():
        head.first.candidate.weight[:8] += 1.0  # the only expert of task 0
    after = head(candidate, head.user_part(user))
    assert not torch.equal(before[:, 0], after[:, 0])
    assert torch.equal(before[:, 1:], after[:, 1:]) == (levels == 1)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_no_weight_is_unused(levels: int) -> None:
    """A shared gate in the last level would get no gradient."""
    head = PLE(ModelConfig(levels=levels, dropout=0.0), TASKS, 6, 5)
    drawn_anew(head, seed=1)
    logits = head(torch.randn(64, 6), head.user_part(torch.randn(64, 5)))
    (logits.square() + logits).sum().backward()
    unused = [name for name, p in head.named_parameters() if p.grad is None or not p.grad.any()]
    assert unused == []


def test_user_part_is_half_of_a_plain_product() -> None:
    level = FirstLevel(LAYOUT, 6, 5, 8, with_shared_gate=True).double()
    plain = torch.nn.Linear(11, level.user.out_features).double()
    with torch.no_grad():
        plain.weight.copy_(torch.cat([level.candidate.weight, level.user.weight], dim=1))
        plain.bias.copy_(level.user.bias)
    candidate, user = torch.randn(2, 7, 6).double(), torch.randn(2, 5).double()
    joint = plain(torch.cat([candidate, user[:, None].expand(-1, 7, -1)], dim=-1))
    split = level.candidate(candidate) + level.user_part(user)[:, None]
    torch.testing.assert_close(split, joint, atol=1e-12, rtol=0)
    by_halves = level(candidate, level.user_part(user)[:, None])
    whole = level(torch.zeros_like(candidate), joint)
    torch.testing.assert_close(by_halves, whole, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("own", "shared"), [(1, 1), (3, 2), (2, 0), (0, 2)])
def test_any_number_of_experts(own: int, shared: int) -> None:
    head = PLE(ModelConfig(task_experts=own, shared_experts=shared, expert_width=8), TASKS, 6, 5)
    assert head(torch.randn(3, 6), head.user_part(torch.randn(3, 5))).isfinite().all()
