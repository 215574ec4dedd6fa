"""Multi-task head: PLE, progressive layered extraction (Tang et al., RecSys 2020), the paper's base model.

Groups are the tasks' and, last, the shared one.  A task's gate sees its own and the shared experts; the shared gate of
every level but the last sees all.  The first level reads [candidate, user] of two towers: its user half is computed
once per user.
Letters: N samples in any leading axes, T tasks, G groups (T + 1), E experts of a level, d width of an expert.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.config import ModelConfig

_UNSEEN = -1e4  # logit of an expert that a gate may not see: its weight is exactly 0 in float32 and float16


class ExpertLayout:
    """Which experts a level has: those of task 0, of task 1, ..., then the shared ones."""

    def __init__(self, tasks: int, task_experts: int, shared_experts: int) -> None:
        self.sizes = [task_experts] * tasks + [shared_experts]  # experts by group
        self.experts = sum(self.sizes)

    def visible(self, with_shared_gate: bool) -> Tensor:
        """Gates by experts: True where a gate sees an expert.  [T or G, E] bool"""
        owner = torch.repeat_interleave(torch.arange(len(self.sizes)), torch.tensor(self.sizes))  # [E]
        shared = len(self.sizes) - 1
        gates = torch.arange(len(self.sizes) if with_shared_gate else shared)
        own = owner[None, :] == gates[:, None]
        return own | (owner == shared)[None, :] | (gates == shared)[:, None]


class Mixture(nn.Module):
    """Softmax-gated sums of experts.  logits [..., gates, E], experts [..., E, d] -> [..., gates, d]"""

    hidden: Tensor

    def __init__(self, layout: ExpertLayout, with_shared_gate: bool) -> None:
        super().__init__()
        visible = layout.visible(with_shared_gate)
        self.register_buffer("hidden", torch.where(visible, 0.0, _UNSEEN), persistent=False)

    def forward(self, logits: Tensor, experts: Tensor) -> Tensor:
        return torch.softmax(logits + self.hidden, dim=-1) @ experts


class FirstLevel(nn.Module):
    """First extraction level.  All experts and gates read the same input: one product for all of them.

    W [candidate, user] + b = W_c candidate + (W_u user + b): the bracket is `user_part`.
    """

    def __init__(
        self, layout: ExpertLayout, candidate_width: int, user_width: int, expert_width: int, with_shared_gate: bool
    ) -> None:
        super().__init__()
        self.experts = layout.experts
        self.mixture = Mixture(layout, with_shared_gate)
        self.expert_outputs = layout.experts * expert_width
        outputs = self.expert_outputs + self.mixture.hidden.numel()
        self.candidate = nn.Linear(candidate_width, outputs, bias=False)
        self.user = nn.Linear(user_width, outputs)

    def user_part(self, user: Tensor) -> Tensor:
        """[U, user_width] -> [U, E d + gates E]"""
        part: Tensor = self.user(user)
        return part

    def forward(self, candidate: Tensor, user_part: Tensor) -> Tensor:
        """candidate [N, candidate_width], user_part broadcastable to [N, outputs] -> [N, gates, d]"""
        both = self.candidate(candidate) + user_part
        experts = torch.unflatten(torch.relu(both[..., : self.expert_outputs]), -1, (self.experts, -1))  # [N, E, d]
        gates = torch.unflatten(both[..., self.expert_outputs :], -1, (-1, self.experts))  # [N, gates, E]
        mixed: Tensor = self.mixture(gates, experts)
        return mixed


class NextLevel(nn.Module):
    """A further extraction level: the experts and the gate of a group read that group's mixture of the level before."""

    def __init__(self, layout: ExpertLayout, width: int, with_shared_gate: bool) -> None:
        super().__init__()
        self.experts_of = nn.ModuleList(nn.Linear(width, size * width) for size in layout.sizes if size)
        self.groups_with_experts = [group for group, size in enumerate(layout.sizes) if size]
        self.mixture = Mixture(layout, with_shared_gate)
        self.gates = nn.ModuleList(nn.Linear(width, layout.experts) for _ in range(len(self.mixture.hidden)))
        self.layout = layout

    def forward(self, groups: Tensor) -> Tensor:
        """groups [N, G, d] -> [N, gates, d]"""
        inputs = groups.unbind(-2)
        outputs = [linear(inputs[g]) for g, linear in zip(self.groups_with_experts, self.experts_of, strict=True)]
        experts = torch.unflatten(torch.relu(torch.cat(outputs, dim=-1)), -1, (self.layout.experts, -1))  # [N, E, d]
        logits = torch.stack([gate(x) for gate, x in zip(self.gates, inputs, strict=False)], dim=-2)  # [N, gates, E]
        mixed: Tensor = self.mixture(logits, experts)
        return mixed


class PLE(nn.Module):
    """Extraction levels, then a tower per task.  `user_part` once per user, `forward` once per candidate."""

    def __init__(self, config: ModelConfig, tasks: int, candidate_width: int, user_width: int) -> None:
        super().__init__()
        layout = ExpertLayout(tasks, config.task_experts, config.shared_experts)
        width, levels = config.expert_width, config.levels
        self.first = FirstLevel(layout, candidate_width, user_width, width, with_shared_gate=levels > 1)
        self.next = nn.ModuleList(
            NextLevel(layout, width, with_shared_gate=level < levels - 1) for level in range(1, levels)
        )
        self.dropout = nn.Dropout(config.dropout)
        self.towers = nn.ModuleList(
            nn.Sequential(
                nn.Linear(width, config.tower_hidden),
                nn.ReLU(),
                nn.Dropout(config.dropout),
                nn.Linear(config.tower_hidden, 1),
            )
            for _ in range(tasks)
        )

    def user_part(self, user: Tensor) -> Tensor:
        """[U, user_width] -> [U, P]: what the first level needs of the user."""
        return self.first.user_part(user)

    def forward(self, candidate: Tensor, user_part: Tensor) -> Tensor:
        """candidate [N, candidate_width], user_part broadcastable to [N, P] -> logits [N, T]"""
        groups = self.dropout(self.first(candidate, user_part))
        for level in self.next:
            groups = level(groups)
        # A level has a gate per task and perhaps the shared one: the towers read the tasks'.
        logits = [tower(x) for tower, x in zip(self.towers, groups.unbind(-2), strict=False)]
        return torch.cat(logits, dim=-1)
