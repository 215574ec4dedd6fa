"""Multi-task heads behind one interface: candidate and user in, a logit per task out.

    shared_bottom  the same layers for all tasks
    mmoe           experts, and a gate per task over all of them (Ma et al., KDD 2018)
    cgc            experts of the tasks and shared ones; a gate sees its own and those (Tang et al., RecSys 2020)
    ple            cgc stacked: progressive layered extraction, the paper's base model (the same)
    adatt          stacked gates over all experts, and a linear combination of the own ones (Li et al., KDD 2023)

Groups are the tasks' and, last, the shared one.  Its gate sees all experts; the last level has none.
The first level reads [candidate, user] of two towers: its user half is computed once per user.
Letters: N samples in any leading axes, T tasks, G groups (T + 1), E experts of a level, d width of an expert.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from model.config import ModelConfig

_UNSEEN = -1e4  # logit of an expert that a gate may not see: its weight is exactly 0 in float32 and float16


@dataclass(frozen=True)
class Member:
    """What tells the heads that mix experts apart."""

    tasks_see_all: bool  # a task's gate sees the experts of other tasks too
    stacked: bool  # `levels` of them; one if not
    residual: bool  # a task's own experts are added outside its gate


MEMBERS = {
    "mmoe": Member(tasks_see_all=True, stacked=False, residual=False),
    "cgc": Member(tasks_see_all=False, stacked=False, residual=False),
    "ple": Member(tasks_see_all=False, stacked=True, residual=False),
    "adatt": Member(tasks_see_all=True, stacked=True, residual=True),
}


class ExpertLayout:
    """Which experts a level has: those of task 0, of task 1, ..., then the shared ones."""

    def __init__(self, tasks: int, task_experts: int, shared_experts: int) -> None:
        self.tasks = tasks
        self.sizes = [task_experts] * tasks + [shared_experts]  # experts by group
        self.experts = sum(self.sizes)

    def gates(self, last: bool) -> int:
        """Gates of a level.  The shared one is for the shared experts of the next level."""
        return self.tasks if last or self.sizes[-1] == 0 else self.tasks + 1

    def own(self, gates: int) -> Tensor:
        """Gates by experts: True where an expert is of the gate's group.  [gates, E] bool"""
        owner = torch.repeat_interleave(torch.arange(len(self.sizes)), torch.tensor(self.sizes))  # [E]
        return owner[None, :] == torch.arange(gates)[:, None]

    def visible(self, gates: int, tasks_see_all: bool) -> Tensor:
        """Gates by experts: True where a gate sees an expert.  [gates, E] bool"""
        shared_expert = torch.arange(self.experts) >= self.experts - self.sizes[-1]
        sees_all = torch.arange(gates) >= (0 if tasks_see_all else self.tasks)
        return self.own(gates) | shared_expert[None, :] | sees_all[:, None]


class OwnExperts(nn.Module):
    """Weights of each group's own experts that no sample changes (AdaTT).  They start as a mean.  -> [gates, E]"""

    own: Tensor

    def __init__(self, own: Tensor) -> None:
        super().__init__()
        self.owned = int(own.sum())  # experts of groups that have a gate: the first ones
        self.others = own.shape[1] - self.owned
        self.register_buffer("own", own[:, : self.owned].float(), persistent=False)
        self.weight = nn.Parameter((self.own / self.own.sum(1, keepdim=True)).sum(0))  # [owned]

    def forward(self) -> Tensor:
        return nn.functional.pad(self.own * self.weight, (0, self.others))


class Mixture(nn.Module):
    """Softmax-gated sums of experts.  logits [..., gates, E], experts [..., E, d] -> [..., gates, d]"""

    hidden: Tensor

    def __init__(self, layout: ExpertLayout, member: Member, last: bool) -> None:
        super().__init__()
        self.gates = layout.gates(last)
        visible = layout.visible(self.gates, member.tasks_see_all)
        self.register_buffer("hidden", torch.where(visible, 0.0, _UNSEEN), persistent=False)
        self.own = OwnExperts(layout.own(self.gates)) if member.residual else None

    def forward(self, logits: Tensor, experts: Tensor) -> Tensor:
        weights = torch.softmax(logits + self.hidden, dim=-1)  # [..., gates, E]
        if self.own is not None:
            weights = weights + self.own()
        return weights @ experts


class SplitLinear(nn.Module):
    """A linear map of [candidate, user], its user half apart.

    W [candidate, user] + b = W_c candidate + (W_u user + b): the bracket is `user_part`.
    """

    def __init__(self, candidate_width: int, user_width: int, outputs: int) -> None:
        super().__init__()
        self.candidate = nn.Linear(candidate_width, outputs, bias=False)
        self.user = nn.Linear(user_width, outputs)

    def user_part(self, user: Tensor) -> Tensor:
        """[U, user_width] -> [U, outputs]"""
        part: Tensor = self.user(user)
        return part

    def forward(self, candidate: Tensor, user_part: Tensor) -> Tensor:
        """candidate [N, candidate_width], user_part broadcastable to [N, outputs] -> [N, outputs]"""
        both: Tensor = self.candidate(candidate) + user_part
        return both


class BottomLayer(SplitLinear):
    """First layer of a shared bottom.  -> [N, outputs]"""

    def forward(self, candidate: Tensor, user_part: Tensor) -> Tensor:
        return torch.relu(super().forward(candidate, user_part))


class FirstLevel(SplitLinear):
    """First level of experts.  All experts and gates read the same input: one product for all of them."""

    def __init__(
        self, layout: ExpertLayout, mixture: Mixture, candidate_width: int, user_width: int, expert_width: int
    ) -> None:
        self.experts = layout.experts
        self.expert_outputs = layout.experts * expert_width
        super().__init__(candidate_width, user_width, self.expert_outputs + mixture.gates * layout.experts)
        self.mixture = mixture

    def forward(self, candidate: Tensor, user_part: Tensor) -> Tensor:
        """candidate [N, candidate_width], user_part broadcastable to [N, E d + gates E] -> [N, gates, d]"""
        both = super().forward(candidate, user_part)
        experts = torch.unflatten(torch.relu(both[..., : self.expert_outputs]), -1, (self.experts, -1))  # [N, E, d]
        gates = torch.unflatten(both[..., self.expert_outputs :], -1, (-1, self.experts))  # [N, gates, E]
        mixed: Tensor = self.mixture(gates, experts)
        return mixed


class NextLevel(nn.Module):
    """A further level: the experts and the gate of a group read that group's mixture of the level before."""

    def __init__(self, layout: ExpertLayout, mixture: Mixture, width: int) -> None:
        super().__init__()
        self.experts_of = nn.ModuleList(nn.Linear(width, size * width) for size in layout.sizes if size)
        self.groups_with_experts = [group for group, size in enumerate(layout.sizes) if size]
        self.gates = nn.ModuleList(nn.Linear(width, layout.experts) for _ in range(mixture.gates))
        self.mixture = mixture
        self.experts = layout.experts

    def forward(self, groups: Tensor) -> Tensor:
        """groups [N, T or G, d] -> [N, gates, d]"""
        inputs = groups.unbind(-2)
        outputs = [linear(inputs[g]) for g, linear in zip(self.groups_with_experts, self.experts_of, strict=True)]
        experts = torch.unflatten(torch.relu(torch.cat(outputs, dim=-1)), -1, (self.experts, -1))  # [N, E, d]
        logits = torch.stack([gate(x) for gate, x in zip(self.gates, inputs, strict=False)], dim=-2)  # [N, gates, E]
        mixed: Tensor = self.mixture(logits, experts)
        return mixed


class MultitaskHead(nn.Module):
    """A member of the family (`config.head`), then a tower per task.

    `user_part` once per user, `forward` once per candidate.
    """

    first: SplitLinear

    def __init__(self, config: ModelConfig, tasks: int, candidate_width: int, user_width: int) -> None:
        super().__init__()
        self.tasks = tasks
        self.member = MEMBERS.get(config.head)  # None: shared bottom
        layout = ExpertLayout(tasks, config.task_experts, config.shared_experts)
        widths = (candidate_width, user_width)
        if self.member is None:
            self.first, self.next, width = _bottom(layout, config, *widths)
        else:
            self.first, self.next, width = _mixtures(layout, self.member, config, *widths)
        self.dropout = nn.Dropout(config.dropout)
        self.towers = nn.ModuleList(_tower(width, config) for _ in range(tasks))

    def user_part(self, user: Tensor) -> Tensor:
        """[U, user_width] -> [U, P]: what the first level needs of the user."""
        return self.first.user_part(user)

    def forward(self, candidate: Tensor, user_part: Tensor) -> Tensor:
        """candidate [N, candidate_width], user_part broadcastable to [N, P] -> logits [N, T]"""
        hidden = self.dropout(self.first(candidate, user_part))
        for level in self.next:
            hidden = level(hidden)
        inputs = (
            [hidden] * self.tasks if self.member is None else hidden.unbind(-2)
        )  # the last level has no shared gate
        return torch.cat([tower(x) for tower, x in zip(self.towers, inputs, strict=True)], dim=-1)


def _bottom(
    layout: ExpertLayout, config: ModelConfig, candidate_width: int, user_width: int
) -> tuple[SplitLinear, nn.ModuleList, int]:
    """First layer, further layers and output width of a shared bottom, about as large as PLE of the same sizes."""
    widths = [layout.experts * config.expert_width] + [config.expert_width] * (config.levels - 1)
    first = BottomLayer(candidate_width, user_width, widths[0])
    return first, nn.ModuleList(nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(widths)), widths[-1]


def _mixtures(
    layout: ExpertLayout, member: Member, config: ModelConfig, candidate_width: int, user_width: int
) -> tuple[SplitLinear, nn.ModuleList, int]:
    """First level, further levels and output width of a head that mixes experts."""
    width, last = config.expert_width, config.levels - 1 if member.stacked else 0
    first = FirstLevel(layout, Mixture(layout, member, last == 0), candidate_width, user_width, width)
    further = (NextLevel(layout, Mixture(layout, member, level == last), width) for level in range(1, last + 1))
    return first, nn.ModuleList(further), width


def _tower(width: int, config: ModelConfig) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, config.tower_hidden),
        nn.ReLU(),
        nn.Dropout(config.dropout),
        nn.Linear(config.tower_hidden, 1),
    )
