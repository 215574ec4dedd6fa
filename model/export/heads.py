"""The multi-task heads of model.multitask for serving: the same logits in a few wide products.

Products of groups are batched over the groups, and operands lie as the product before left them: ONNX Runtime reads a
swap of the first two axes in place.  A level gives its mixtures in the order in which the next level's experts read
them, one of two experts twice, so that nothing is copied in between.
Letters: N candidates (K of T tiles), E experts, R rows of a level (mixtures it gives), d width of an expert, P user
part, A tasks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.multitask import FirstLevel, Mixture, MultitaskHead, NextLevel


class Batched(nn.Module):
    """Linear layers side by side: [B, N, inputs] -> [B, N, outputs]"""

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor], ones: bool = False) -> None:
        """weights [outputs, inputs], biases [outputs] of each, as in nn.Linear;  ones: the last of the inputs is 1, and
        the weights have none for it."""
        super().__init__()
        weight, bias = torch.stack([weight.T for weight in weights]), torch.stack(list(biases))[:, None]
        self.weight = constant(torch.cat([weight, bias], 1) if ones else weight)
        self.bias = None if ones else constant(bias)

    def forward(self, x: Tensor) -> Tensor:
        product = x @ self.weight
        return product if self.bias is None else product + self.bias


class Weights(nn.Module):
    """What `Mixture` weighs experts with, of some gates.  logits, unseen experts' lowered -> weights"""

    def __init__(self, mixture: Mixture, gates: Sequence[int], axes: int = 0) -> None:
        """axes: how many stand between those of gates and experts."""
        super().__init__()
        own = (
            None
            if mixture.own is None
            else mixture.own()[list(gates)].reshape(-1, *[1] * axes, mixture.hidden.shape[1])
        )
        self.own = None if own is None else constant(own)

    def forward(self, logits: Tensor) -> Tensor:
        weights = torch.softmax(logits, dim=-1)
        return weights if self.own is None else weights + self.own


class ServingFirst(nn.Module):
    """`FirstLevel` of the rows that are read: candidate [N, candidate_width], user part [T, P] -> [N, R, d]

    ones: the experts have the output 1 too, and [N, R, d + 1] is given.
    """

    def __init__(self, level: FirstLevel, candidate: Tensor, gates: Sequence[int]) -> None:
        """candidate: weights of the candidate, [experts' and gates' outputs, candidate_width]."""
        super().__init__()
        self.ones, self.experts = level.mixture.own is None, level.experts
        rows = _rows_of(level, gates)
        hidden = functional.pad(level.mixture.hidden[list(gates)].flatten(), (level.expert_outputs, 0))
        of_user, bias, of_candidate = level.user.weight[rows], level.user.bias[rows] + hidden, candidate[rows]
        if self.ones:
            of_user, of_candidate = (_with_one(level, weight, 0.0) for weight in (of_user, of_candidate))
            bias = _with_one(level, bias, 1.0)
        self.user = linear(of_user, bias)
        gate_outputs = len(gates) * level.experts
        self.sizes = [len(bias) - gate_outputs, gate_outputs]
        self.expert_weight, self.gate_weight = (constant(w.T) for w in torch.split(of_candidate, self.sizes))
        self.weights = Weights(level.mixture, gates)

    def forward(self, candidate: Tensor, user_part: Tensor) -> Tensor:
        user_experts, user_gates = torch.split(user_part, self.sizes, dim=-1)
        experts = torch.relu(_add_to_tiles(candidate @ self.expert_weight, user_experts))  # [N, E d]
        logits = _add_to_tiles(candidate @ self.gate_weight, user_gates)  # [N, R E]
        weights: Tensor = self.weights(torch.unflatten(logits, -1, (-1, self.experts)))  # [N, R, E]
        return weights @ torch.unflatten(experts, -1, (self.experts, -1))


class ServingBottom(nn.Module):
    """`BottomLayer` and the layers after it: candidate [N, candidate_width], user part [T, P] -> [N, 1, d]"""

    def __init__(self, head: MultitaskHead, candidate: Tensor) -> None:
        super().__init__()
        self.user = head.first.user
        self.weight = constant(candidate.T)
        self.next = head.next

    def forward(self, candidate: Tensor, user_part: Tensor) -> Tensor:
        hidden = torch.relu(_add_to_tiles(candidate @ self.weight, user_part))
        for layer in self.next:
            hidden = layer(hidden)
        return hidden[:, None]


class ServingLevel(nn.Module):
    """`NextLevel`: the rows that it reads [N, R, d] -> the rows that are read of it [N, R', d]"""

    def __init__(self, level: NextLevel, reads: Sequence[int], gates: Sequence[int], ones: bool) -> None:
        """reads: of which gate of the level before each input is; gates: of this level, to be given; ones: as in
        `ServingFirst`."""
        super().__init__()
        all_experts = side_by_side(linears(level.experts_of))  # [E d, d]
        width = all_experts.in_features
        self.experts = Batched(torch.split(all_experts.weight, width), torch.split(all_experts.bias, width), ones)
        self.spare = len(reads) - len(self.experts.weight)  # inputs of gates alone
        self.places = [list(reads).index(gate) for gate in gates]
        # Logits of every input, then those of the gates: to pick inputs would copy them.
        of_reads = [min(gate, level.mixture.gates - 1) for gate in reads]
        layers = linears(level.gates)
        biases = [layers[gate].bias + level.mixture.hidden[gate] for gate in of_reads]
        self.gates = Batched([layers[gate].weight for gate in of_reads], biases, ones)
        self.weights = Weights(level.mixture, gates, axes=1)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.transpose(0, 1)  # [R, N, d]
        experts = torch.relu(self.experts(rows[: -self.spare] if self.spare else rows))  # [E, N, d]
        logits = _pick(self.gates(rows), self.places)  # [R', N, E]
        weights: Tensor = self.weights(logits)  # [R', N, E]
        return weights.transpose(0, 1) @ experts.transpose(0, 1)


class Towers(nn.Module):
    """The towers of all tasks: [N, A or 1, d] -> probabilities [N, A]"""

    def __init__(self, towers: Sequence[nn.Module], ones: bool) -> None:
        super().__init__()
        first, last = [tower[0] for tower in towers], [tower[3] for tower in towers]  # type: ignore[index]
        self.first = Batched([linear.weight for linear in first], [linear.bias for linear in first], ones)
        self.last = Batched([linear.weight for linear in last], [linear.bias for linear in last])

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.first(x.transpose(0, 1)))  # [A, N, hidden]
        return torch.sigmoid(self.last(hidden).squeeze(-1).T)


class ServingHead(nn.Module):
    """A trained head; its input layer is given other weights of the candidate, in which layers before it are folded."""

    def __init__(self, head: MultitaskHead, candidate: Tensor) -> None:
        """candidate [P, candidate_width]"""
        super().__init__()
        self.first: ServingFirst | ServingBottom
        self.next = nn.ModuleList()
        ones = False  # as in `ServingFirst`, of the layer before
        if not isinstance(head.first, FirstLevel):
            self.first = ServingBottom(head, candidate)
        else:
            reads = [_reads(level) for level in head.next] + [list(range(head.tasks))]  # type: ignore[arg-type]
            self.first = ServingFirst(head.first, candidate, reads[0])
            ones = self.first.ones
            for level, given, wanted in zip(head.next, reads[:-1], reads[1:], strict=True):
                assert isinstance(level, NextLevel)
                self.next.append(ServingLevel(level, given, wanted, ones))
                ones = False
        self.user_part: nn.Linear = self.first.user
        self.towers = Towers(list(head.towers), ones)

    def forward(self, candidate: Tensor, user_part: Tensor) -> Tensor:
        """candidate [N, candidate_width], user part of each tile [T, P] -> probabilities [N, A]"""
        hidden: Tensor = self.first(candidate, user_part)
        for level in self.next:
            hidden = level(hidden)
        probabilities: Tensor = self.towers(hidden)
        return probabilities


def constant(weights: Tensor) -> nn.Parameter:
    """A copy that is contiguous, and not trained."""
    return nn.Parameter(weights.detach().clone(memory_format=torch.contiguous_format), requires_grad=False)


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """The layer of given weights."""
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight, layer.bias = constant(weight), constant(bias)
    return layer


def side_by_side(layers: Sequence[nn.Linear]) -> nn.Linear:
    """Layers of the same input as one."""
    return linear(torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers]))


def _rows_of(level: FirstLevel, gates: Sequence[int]) -> Tensor:
    """Outputs of a first level: all experts', then those of the gates."""
    of_gates = torch.arange(level.expert_outputs, level.candidate.out_features).reshape(-1, level.experts)
    return torch.cat([torch.arange(level.expert_outputs), of_gates[list(gates)].flatten()])


def _with_one(level: FirstLevel, outputs: Tensor, value: float) -> Tensor:
    """outputs [E d + R E, ...] of a first level -> [E (d + 1) + R E, ...], with `value` for those that are 1"""
    experts = torch.unflatten(outputs[: level.expert_outputs], 0, (level.experts, -1))  # [E, d, ...]
    widened = torch.cat([experts, torch.full_like(experts[:, :1], value)], 1)
    return torch.cat([widened.flatten(0, 1), outputs[level.expert_outputs :]])


def _reads(level: NextLevel) -> list[int]:
    """The group that each expert of a level reads, then groups that only its gates do."""
    sizes = [linear.out_features // linear.in_features for linear in linears(level.experts_of)]
    owners = [group for group, size in zip(level.groups_with_experts, sizes, strict=True) for _ in range(size)]
    return owners + [gate for gate in range(len(level.gates)) if gate not in owners]


def linears(modules: Iterable[nn.Module]) -> list[nn.Linear]:
    """Modules that are linear layers, as such."""
    return [module for module in modules if isinstance(module, nn.Linear)]


def _add_to_tiles(x: Tensor, of_tiles: Tensor) -> Tensor:
    """x [K T, P], of_tiles [T, P], the tile varying fastest -> [K T, P]"""
    tiles, width = of_tiles.shape
    return (x.reshape(-1, tiles, width) + of_tiles).reshape(-1, width)


def _pick(x: Tensor, places: Sequence[int]) -> Tensor:
    """Rows of the first axis."""
    if list(places) == list(range(len(places))):
        return x[: len(places)]
    return x[list(places)]
