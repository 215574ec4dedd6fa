"""The user tower for serving: what the candidate tower of model.export.serving reads, from few products.

An event passes through linear layers only between its embedding and the attentions, so what an attention reads of it
is one product: output projections and residuals (Eq. 12, 16) are folded into the keys, values and queries after them,
and the frequency filter, which mixes events and not columns, is applied to keys and values.
Sums over events are products [1, L] x [L, D] of each user, and no product mixes the rows of two users: ONNX Runtime's
sums over an inner axis are taken in an order that depends on U, and then a user's state would hang on the others'.
Letters: U users, L events, S slots (events, and the sink), D width of an event, A target attentions, H heads of each,
d width of a head, c columns of the filter's basis, P outputs of the head's user part.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.attention import KeysValues, SequenceAttention, TargetAttention
from model.embedding import quantise
from model.export.heads import ServingHead, constant, linear, linears, side_by_side
from model.export.lookups import Lookups
from model.farm import MASKS, FarmUser, Ranker
from model.frequency import FrequencyModule, Gate

DOMAINS = ["video", "live"]
UNSEEN = -3e4  # attention logit of a pad: its weight is 0 in float32, and float16 holds it


class ServingUser(nn.Module):
    """The user tower of a base model.  UserInputs -> head_user [U, P]"""

    def __init__(self, model: Ranker, head: ServingHead) -> None:
        super().__init__()
        inputs = model.inputs
        self.quantum_s = inputs.quantum_s
        slots, dtype = model.view.history_length, head.user_part.weight.dtype
        events = (torch.arange(slots) < torch.arange(slots + 1)[:, None]).to(dtype)  # [L + 1, L]
        self.valid = constant(events)  # of every length
        self.shares = constant(events / events.sum(1, keepdim=True).clamp(min=1.0))  # in the mean
        self.events = Lookups([inputs.video, inputs.live], axes=2)
        self.users = Lookups([inputs.user] if inputs.context is None else [inputs.user, inputs.context], axes=1)
        self.part = side_by_side([head.user_part])

    def forward(
        self, video: Tensor, video_length: Tensor, live: Tensor, live_length: Tensor, user: Tensor, now: Tensor
    ) -> dict[str, Tensor]:
        *_, means = self._histories(video, live, self._lengths(video_length, live_length), now)
        return {"head_user": self.part(self._user(user, now, means))}

    def _lengths(self, video: Tensor, live: Tensor) -> Tensor:
        """Events of both histories, at most L: [U, 2].  No clamp: ONNX Runtime's Clip cuts int64 at 32 bits."""
        length, slots = torch.stack([video, live], 1), self.valid.shape[1]
        return torch.where(length > slots, slots, length)

    def _histories(
        self, video: Tensor, live: Tensor, length: Tensor, now: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """-> events [U, L, D] of both, valid [U, 2, L] 0 or 1, means [U, D] of both"""
        columns = torch.cat([video, live], -1).permute(2, 0, 1)  # [F, U, L]
        videos, lives = self.events(columns, quantise(now, self.quantum_s)[:, None])
        valid, shares = functional.embedding(length, self.valid), functional.embedding(length, self.shares)  # [U, 2, L]
        videos, lives = videos * valid[:, 0, :, None], lives * valid[:, 1, :, None]
        return videos, lives, valid, [(shares[:, :1] @ videos).squeeze(1), (shares[:, 1:] @ lives).squeeze(1)]

    def _user(self, user: Tensor, now: Tensor, means: list[Tensor]) -> Tensor:
        """user [U, Fu + Fx], now [U] -> what the head reads of a user, [U, user_width]"""
        return torch.cat([*self.users(user.T, quantise(now, self.quantum_s)), *means], dim=-1)


class ServingFarmUser(ServingUser):
    """The user tower of FARM.  UserInputs -> keys [U, A H, d + 1, S], values [U, A H, S, d], head_user [U, P]

    The row d of the keys is the user's part of the attention's logit, the mask in it.
    """

    def __init__(self, model: Ranker, head: ServingHead) -> None:
        super().__init__(model, head)
        farm, config = model.farm, model.config
        assert farm is not None
        self.heads, self.width, self.names = config.heads, config.heads * config.head_width, list(farm.targets)
        self.filters = [name for name in DOMAINS if _filter_of(farm, name) is not None]
        tables = [_filter_of(farm, name).table for name in self.filters]  # type: ignore[union-attr]
        self.basis = constant(tables[0]) if tables else None
        self.gates = _gates(farm, self.filters)
        self.part = side_by_side([head.user_part, *_user_layers(model, self.filters)])
        self.sizes = [head.user_part.out_features, len(self.names) * self.width]
        self.of_video, self.of_live = EventProducts(farm, "video"), EventProducts(farm, "live")
        self.crossing = Crossing(farm) if farm.fuse is not None else None
        self.domains = nn.Buffer(torch.tensor([DOMAINS.index(MASKS[name]) for name in self.names]), persistent=False)
        projections = [_projections(farm, name) for name in self.names]
        self.bias = constant(torch.cat([_value_bias(p) for p in projections]))  # [A 2 H d]
        sinks = [p.sink_key for p in projections if p.sink_key is not None]
        self.sink = constant(torch.cat([torch.cat([k.flatten(), k.flatten() * 0]) for k in sinks])) if sinks else None

    def forward(
        self, video: Tensor, video_length: Tensor, live: Tensor, live_length: Tensor, user: Tensor, now: Tensor
    ) -> dict[str, Tensor]:
        length = self._lengths(video_length, live_length)  # [U, 2]
        videos, lives, valid, means = self._histories(video, live, length, now)
        head_user, query, hidden = self._users(self._user(user, now, means))
        of_video, of_live = self.of_video(videos), self.of_live(lives)
        targets = self._filter([of_video["target"], of_live["target"]], length, hidden)
        if self.crossing is not None:
            targets.append(self.crossing(of_video, of_live, valid))
        slots = valid.index_select(1, self.domains)  # [U, A, L]
        return self._state(torch.cat(targets, -1) + self.bias, slots, query) | {"head_user": head_user}

    def _users(self, user: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[U, user and means] -> head_user [U, P], queries [U, A H d], hidden layer of the filters' gates [U, ...]"""
        found = self.part(user)
        head, query = self.sizes
        return found[:, :head], found[:, head : head + query], found[:, head + query :]

    def _filter(self, targets: list[Tensor], length: Tensor, hidden: Tensor) -> list[Tensor]:
        """Eq. 9 for the keys and values [U, L, 2 H d] of both histories."""
        if self.gates is None or self.basis is None:
            return targets
        gates = torch.sigmoid(self.gates(torch.relu(hidden)))[:, :, None, None].unbind(1)  # low and high of each
        found = dict(zip(DOMAINS, targets, strict=True))
        for place, name in enumerate(self.filters):
            x, basis = found[name], self.basis[length[:, DOMAINS.index(name)]]  # [U, L, 2 H d], [U, L, c]
            low, high = gates[2 * place], gates[2 * place + 1]
            found[name] = high * x + (basis * (low - high)) @ (basis.transpose(1, 2) @ x)
        return list(found.values())

    def _state(self, targets: Tensor, valid: Tensor, query: Tensor) -> dict[str, Tensor]:
        """targets [U, L, A 2 H d], valid [U, A, L], query [U, A H d]"""
        targets = (torch.unflatten(targets, -1, (len(self.names), -1)) * valid.transpose(1, 2)[..., None]).flatten(2)
        if self.sink is not None:
            targets = torch.cat([targets, self.sink.expand(targets.shape[0], 1, -1)], 1)  # [U, S, A 2 H d]
            valid = functional.pad(valid, (0, 1), value=1.0)
        split = torch.unflatten(targets, -1, (len(self.names), 2, self.heads, -1))  # [U, S, A, 2, H, d]
        keys = split[:, :, :, 0].permute(0, 2, 3, 4, 1)  # [U, A, H, d, S]
        values = split[:, :, :, 1].permute(0, 2, 3, 1, 4)  # [U, A, H, S, d]
        mask = _mask(valid)[:, :, None, None]  # [U, A, 1, 1, S]
        bias = torch.unflatten(query, -1, (len(self.names), self.heads, 1, -1)) @ keys + mask  # [U, A, H, 1, S]
        return {"keys": torch.cat([keys, bias], 3).flatten(1, 2), "values": values.flatten(1, 2)}


class EventProducts(nn.Module):
    """Everything that is read of the events of one domain: [U, L, D] -> by name, [U, L, ...]

    self    queries, keys, values of its self-attention
    target  keys, values of its target attention
    cross   of videos keys and values, of live events queries of the cross attention; without residuals nothing
    fused   of live events keys and values of the target attention over fused events; without residuals nothing
    """

    def __init__(self, farm: FarmUser, domain: str) -> None:
        super().__init__()
        blocks = {"target": _keys_values(_projections(farm, domain))}
        if farm.fuse is not None and farm.self_attentions is not None:
            attention = farm.self_attentions.video if domain == "video" else farm.self_attentions.live
            blocks["self"] = torch.cat([attention.query.weight, _keys_values(attention.keys_values)])
            if farm.fuse.residual:
                blocks |= _after_self_attention(farm, domain)
        self.names, self.sizes = list(blocks), [len(block) for block in blocks.values()]
        self.weight = constant(torch.cat(list(blocks.values())).T)

    def forward(self, events: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.names, torch.split(events @ self.weight, self.sizes, -1), strict=True))


class Crossing(nn.Module):
    """Self- and cross attention (Eq. 12, 16): products of both domains, valid [U, 2, L] -> target [U, L, 2 H d]"""

    def __init__(self, farm: FarmUser) -> None:
        super().__init__()
        assert farm.fuse is not None
        assert farm.self_attentions is not None
        cross = farm.fuse.cross
        self.heads, self.residual = cross.heads, farm.fuse.residual
        self.width = cross.query.out_features
        self.video_out, self.live_out = (
            constant((torch.cat(list(_after_self_attention(farm, domain).values())) @ attention.out.weight).T)
            for domain, attention in (("video", farm.self_attentions.video), ("live", farm.self_attentions.live))
        )
        self.cross_out = constant((_keys_values(_projections(farm, "cross")) @ cross.out.weight).T)
        self.query_bias = None if cross.query.bias is None else constant(cross.query.bias)
        value_bias = cross.keys_values.value.bias
        self.value_bias = None if value_bias is None else constant(value_bias)
        sink = cross.keys_values.sink_key
        self.sink = None if sink is None else constant(sink)  # [H, d, 1]

    def forward(self, video: dict[str, Tensor], live: dict[str, Tensor], valid: Tensor) -> Tensor:
        both = torch.stack([video["self"], live["self"]], 1)  # [U, 2, L, 3 H d]
        video_self, live_self = self._self_attention(both, _mask(valid)[:, :, None, None]).unbind(1)  # [U, L, H d] each
        of_video, of_live = video_self @ self.video_out, live_self @ self.live_out
        query, fused = of_live[..., : self.width], of_live[..., self.width :]
        if self.residual:
            of_video, query, fused = of_video + video["cross"], query + live["cross"], fused + live["fused"]
        crossed = self._cross_attention(query, of_video, valid[:, 0]) @ self.cross_out
        return crossed + fused if self.residual else crossed

    def _self_attention(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [U, 2, L, 3 H d], mask [U, 2, 1, 1, L] -> [U, 2, L, H d]"""
        split = torch.unflatten(x, -1, (3, self.heads, -1))  # [U, 2, L, 3, H, d]
        query, key, value = (split[:, :, :, part].transpose(2, 3) for part in range(3))  # [U, 2, H, L, d]
        mixed = torch.softmax(query @ key.transpose(3, 4) + mask, -1) @ value
        return mixed.transpose(2, 3).flatten(3)

    def _cross_attention(self, query: Tensor, keys_values: Tensor, valid: Tensor) -> Tensor:
        """query [U, L, H d], keys_values [U, L, 2 H d], valid [U, L] -> [U, L, H d]"""
        if self.query_bias is not None:
            query = query + self.query_bias
        split = torch.unflatten(keys_values, -1, (2, self.heads, -1))  # [U, L, 2, H, d]
        keys, values = split[:, :, 0].permute(0, 2, 3, 1), split[:, :, 1]  # [U, H, d, L], [U, L, H, d]
        if self.value_bias is not None:
            values = values + torch.unflatten(self.value_bias, 0, (self.heads, -1))
        values = (values * valid[..., None, None]).transpose(1, 2)  # [U, H, L, d]
        mask = _mask(valid)
        if self.sink is not None:
            keys = torch.cat([keys, self.sink.expand(keys.shape[0], -1, -1, -1)], -1)
            values, mask = functional.pad(values, (0, 0, 0, 1)), functional.pad(mask, (0, 1))
        logits = torch.unflatten(query, -1, (self.heads, -1)).transpose(1, 2) @ keys + mask[:, None, None]
        return (torch.softmax(logits, -1) @ values).transpose(1, 2).flatten(2)


def _mask(valid: Tensor) -> Tensor:
    """What is added to attention logits: 0 for events, UNSEEN for pads."""
    return (1.0 - valid) * UNSEEN


def _projections(farm: FarmUser, name: str) -> KeysValues:
    attention = farm.targets[name]
    assert isinstance(attention, TargetAttention)
    return attention.projections


def _keys_values(projections: KeysValues) -> Tensor:
    """Weights of scaled keys, then of values: [2 H d, D]"""
    return torch.cat([projections.key.weight * projections.scale, projections.value.weight])


def _value_bias(projections: KeysValues) -> Tensor:
    """[2 H d], zeros for the keys"""
    keys = torch.zeros_like(projections.key.weight[:, 0])
    bias = projections.value.bias
    return torch.cat([keys, torch.zeros_like(keys) if bias is None else bias])


def _after_self_attention(farm: FarmUser, domain: str) -> dict[str, Tensor]:
    """Weights of what is read of a domain's events after self-attention."""
    assert farm.fuse is not None
    cross: SequenceAttention = farm.fuse.cross
    if domain == "video":
        return {"cross": _keys_values(cross.keys_values)}
    blocks = {"cross": cross.query.weight}
    return blocks | {"fused": _keys_values(_projections(farm, "cross"))} if farm.fuse.residual else blocks


def _filter_of(farm: FarmUser, domain: str) -> FrequencyModule | None:
    return farm.video_frequency if domain == "video" else farm.live_frequency


def _gates(farm: FarmUser, domains: Sequence[str]) -> nn.Linear | None:
    """Second layers of all gates as one: [U, 2 hidden of each domain] -> low and high of each."""
    layers = linears(gate.mlp[2] for name in domains for gate in _both_gates(farm, name))
    if not layers:
        return None
    hidden = layers[0].in_features
    blocks = [
        functional.pad(layer.weight, (i * hidden, (len(layers) - 1 - i) * hidden)) for i, layer in enumerate(layers)
    ]
    return linear(torch.cat(blocks), torch.cat([layer.bias for layer in layers]))


def _both_gates(farm: FarmUser, domain: str) -> tuple[Gate, Gate]:
    module = _filter_of(farm, domain)
    assert module is not None
    return module.low_gate, module.high_gate


def _user_layers(model: Ranker, filters: Sequence[str]) -> list[nn.Linear]:
    """Linear layers of [embedded user, video mean, live mean] beside the head's: the query, the gates' first."""
    farm, view = model.farm, model.view
    assert farm is not None
    user, video, live = model.inputs.user_width, view.width("video"), view.width("live")
    before = {"video": user, "live": user + video}
    after = {"video": live, "live": 0}
    query = model.query_user
    layers = [linear(functional.pad(query.weight, (0, video + live)), query.bias)]
    for name in filters:
        for first in linears(gate.mlp[0] for gate in _both_gates(farm, name)):
            layers.append(linear(functional.pad(first.weight, (before[name], after[name])), first.bias))
    return layers
