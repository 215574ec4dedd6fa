"""A ranker for serving: the same probabilities from fewer and wider products (docs/decisions.md).

Built from a trained `Ranker` at export:
- output projections of target attentions are folded into the head's input layer;
- the user's part of the query and the mask are one more key dimension, for which the query holds 1;
- the three target attentions are one of three times the heads, its keys and values laid out by the user tower;
- a field kind is looked up at once (model.export.lookups), a level of the head is one product (model.export.heads).
Letters: U users, L events, S slots (events and the sink), A target attentions, H heads of each, d width of a head,
T tiles, K candidates of a tile, N = K T, W width of an embedded candidate.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.attention import TargetAttention
from model.export.heads import ServingHead
from model.export.lookups import Lookups
from model.export.user import ServingFarmUser, ServingUser
from model.farm import FarmUser, Ranker


class ServingCandidate(nn.Module):
    """The candidate tower.  state, candidates [T, K, Fc] int64, tile_user [T] -> probabilities [T, K, tasks]"""

    def __init__(self, model: Ranker, head: ServingHead) -> None:
        super().__init__()
        self.head = head
        self.lookups = Lookups([model.candidate_embedding], axes=1)
        self.heads = 0
        if model.farm is not None:
            self.heads = len(model.farm.targets) * model.config.heads
            self.query = _query(model)

    def forward(self, state: dict[str, Tensor], candidates: Tensor, tile_user: Tensor) -> Tensor:
        tiles, size = candidates.shape[:2]
        columns = candidates.transpose(0, 1).flatten(0, 1).T  # [Fc, N], the tile varying fastest
        (embedded,) = self.lookups(columns)  # [N, W]
        user_part = state["head_user"].index_select(0, tile_user)
        if self.heads:
            keys, values = state["keys"].index_select(0, tile_user), state["values"].index_select(0, tile_user)
            attended = self._attend(self.query(embedded), keys, values)
            embedded = torch.cat([embedded, attended], dim=-1)
        probabilities: Tensor = self.head(embedded, user_part)  # [N, tasks]
        return probabilities.reshape(size, tiles, -1).transpose(0, 1)

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """query [N, A H (d + 1)], keys [T, A H, d + 1, S], values [T, A H, S, d] -> [N, A H d]"""
        keys, values = keys.flatten(0, 1), values.flatten(0, 1)  # [T A H, ...]
        of_heads = query.reshape(-1, keys.shape[0], keys.shape[1]).transpose(0, 1)  # [T A H, K, d + 1]
        mixed = torch.softmax(of_heads @ keys, dim=-1) @ values  # [T A H, K, d]
        return mixed.transpose(0, 1).reshape(-1, self.heads * values.shape[2])


class ServingRanker(nn.Module):
    """Both towers of a trained ranker."""

    def __init__(self, model: Ranker) -> None:
        super().__init__()
        head = ServingHead(model.head, _folded(model))
        self.user_tower = ServingFarmUser(model, head) if model.farm is not None else ServingUser(model, head)
        self.candidate_tower = ServingCandidate(model, head)

    def user_state(self, **inputs: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.user_tower(**inputs)
        return state

    def probabilities(self, state: dict[str, Tensor], candidates: Tensor, tile_user: Tensor) -> Tensor:
        found: Tensor = self.candidate_tower(state, candidates, tile_user)
        return found


@torch.no_grad()
def _folded(model: Ranker) -> Tensor:
    """The head's weights of the candidate, W_c blockdiag(I, W_o, W_o, W_o): [P, candidate_width]"""
    weight = model.head.first.candidate.weight
    if model.farm is None:
        return weight
    width = model.candidate_embedding.width
    parts = weight[:, width:].chunk(len(model.farm.targets), dim=1)
    folded = [part @ _target(model.farm, name).out.weight for part, name in zip(parts, model.farm.targets, strict=True)]
    return torch.cat([weight[:, :width], *folded], dim=1)


def _target(farm: FarmUser, name: str) -> TargetAttention:
    attention = farm.targets[name]
    assert isinstance(attention, TargetAttention)
    return attention


@torch.no_grad()
def _query(model: Ranker) -> nn.Linear:
    """The query product, each head followed by a constant 1: W -> A H (d + 1)"""
    width = model.config.head_width
    weight = torch.unflatten(model.query_candidate.weight, 0, (-1, width))  # [A H, d, W]
    query = nn.Linear(weight.shape[2], weight.shape[0] * (width + 1)).to(weight.dtype)
    query.weight.copy_(nn.functional.pad(weight, (0, 0, 0, 1)).flatten(0, 1))
    query.bias.copy_(nn.functional.pad(torch.zeros_like(weight[..., 0]), (0, 1), value=1.0).flatten())
    return query
