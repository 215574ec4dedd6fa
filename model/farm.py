"""FARM and its base model as two towers: the user once, the candidates many (Figure 2 of the paper).

    user_tower       histories, user, context, now -> user state, a set of named tensors
    candidate_tower  user state, candidates, tile_user -> logits

Letters: U users, L events of a history, F columns, T tiles, K candidates of a tile, H heads, d width of a head,
D1 and D2 widths of a video and a live event.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from feature_store.schema import MISSING, Domain
from feature_store.view import REQUEST_CANDIDATE, ModelView
from model.align import Preference, Preferences
from model.attention import TargetAttention
from model.config import ModelConfig
from model.embedding import PartEmbedding, event_mask, make_tables, masked_mean, quantise
from model.frequency import FrequencyModule
from model.fuse import FuseModule, SelfAttentions
from model.matching import look_for_equals, shared_columns, start_alike, start_as_high_pass, start_in_order
from model.multitask import MultitaskHead

UserState = dict[str, Tensor]

MASKS: dict[str, Domain] = {
    "video": "video",
    "live": "live",
    "cross": "live",
}  # whose events a target attention is over


@dataclass
class Histories:
    """Both histories, embedded (Eq. 8).  Pads are zero."""

    video: Tensor  # [U, L, D1]
    live: Tensor  # [U, L, D2]
    video_valid: Tensor  # [U, L] bool
    live_valid: Tensor  # [U, L] bool


class InputLayer(nn.Module):
    """Raw int64 inputs to embeddings.  The candidate tower has its own `PartEmbedding` over the same tables."""

    def __init__(self, view: ModelView, tables: nn.ModuleDict, rates: dict[str, float]) -> None:
        super().__init__()
        self.quantum_s = view.lag_quantum_s
        self.user_columns = len(view.columns("user"))
        self.record_missing_rate = rates["record"]
        self.video = PartEmbedding(view, "video", tables, rates)
        self.live = PartEmbedding(view, "live", tables, rates)
        self.user = PartEmbedding(view, "user", tables, rates)
        self.context = PartEmbedding(view, "context", tables, rates) if view.context else None

    def histories(
        self, video: Tensor, video_length: Tensor, live: Tensor, live_length: Tensor, now: Tensor
    ) -> Histories:
        """video [U, L, F1], live [U, L, F2] int64; lengths and now [U]"""
        now = quantise(now, self.quantum_s)[:, None]  # [U, 1]
        video_valid = event_mask(self._drop(video_length), video.shape[1])
        live_valid = event_mask(self._drop(live_length), live.shape[1])
        return Histories(
            self.video(video, now) * video_valid[..., None],
            self.live(live, now) * live_valid[..., None],
            video_valid,
            live_valid,
        )

    def users(self, user: Tensor, now: Tensor) -> Tensor:
        """user [U, Fu + Fx] int64, now [U] -> [U, D]"""
        now = quantise(now, self.quantum_s)
        parts = [self.user(user[:, : self.user_columns], now)]
        if self.context is not None:
            parts.append(self.context(user[:, self.user_columns :], now))
        return torch.cat(parts, dim=-1)

    @property
    def user_width(self) -> int:
        return self.user.width + (0 if self.context is None else self.context.width)

    def _drop(self, length: Tensor) -> Tensor:
        """In training, read a history as empty now and then: a degraded answer does."""
        if not self.training or self.record_missing_rate == 0:
            return length
        return torch.where(torch.rand(length.shape, device=length.device) < self.record_missing_rate, 0, length)


class FarmUser(nn.Module):
    """The user half of FARM: frequency (Eq. 9-10), align (Eq. 12-13), fuse (Eq. 16), keys and values (Eq. 11, 17)."""

    def __init__(self, config: ModelConfig, view: ModelView) -> None:
        super().__init__()
        d1, d2, slots = view.width("video"), view.width("live"), view.history_length
        sizes = (config.heads, config.head_width)

        def frequency(width: int, on: bool) -> FrequencyModule | None:
            return FrequencyModule(width, slots, config.cutoff, config.spectrum, config.gate_hidden) if on else None

        self.video_frequency = frequency(d1, config.video_frequency)
        self.live_frequency = frequency(d2, config.live_frequency)
        self.self_attentions = SelfAttentions(d1, d2, *sizes, config.residual) if config.align or config.fuse else None
        self.video_preference = Preference(d1, config.align_width) if config.align else None
        self.live_preference = Preference(d2, config.align_width) if config.align else None
        self.fuse = FuseModule(d1, d2, *sizes, config.residual, config.sink) if config.fuse else None
        widths = {"video": d1, "live": d2} | ({"cross": d2} if config.fuse else {})
        self.targets = nn.ModuleDict(
            {name: TargetAttention(width, *sizes, config.sink) for name, width in widths.items()}
        )

    def forward(self, h: Histories) -> tuple[UserState, Preferences | None]:
        """-> keys, values and masks of the target attentions; the preferences when aligned"""
        video = h.video if self.video_frequency is None else self.video_frequency(h.video, h.video_valid)
        live = h.live if self.live_frequency is None else self.live_frequency(h.live, h.live_valid)
        sources = {"video": (video, h.video_valid), "live": (live, h.live_valid)}
        preferences = None
        if self.self_attentions is not None:
            v_hat, l_hat = self.self_attentions(h.video, h.live, h.video_valid, h.live_valid)
            if self.video_preference is not None and self.live_preference is not None:
                preferences = Preferences(
                    self.video_preference(v_hat, h.video_valid),
                    self.live_preference(l_hat, h.live_valid),
                    h.video_valid.any(1) & h.live_valid.any(1),
                )
            if self.fuse is not None:
                sources["cross"] = (self.fuse(v_hat, l_hat, h.video_valid, h.live_valid), h.live_valid)
        return self._state(sources), preferences

    def _state(self, sources: dict[str, tuple[Tensor, Tensor]]) -> UserState:
        state: UserState = {}
        for name, (events, valid) in sources.items():
            attention = self.targets[name]
            assert isinstance(attention, TargetAttention)
            keys, values, mask = attention.projections(events, valid)
            state |= {f"{name}_keys": keys, f"{name}_values": values, f"{MASKS[name]}_valid": mask}
        return state


class Ranker(nn.Module):
    """FARM ("farm") or a base model, by configuration; the head of either is one of model.multitask.

    The head of both reads candidate, user, context and the masked means of both histories; FARM's attentions (Eq. 18)
    come on top, so that a gain of FARM cannot come from data alone.
    """

    def __init__(self, config: ModelConfig, view: ModelView, table_std: float = 0.01) -> None:
        super().__init__()
        self.config, self.view = config, view
        rates = {"id": config.id_missing_rate, "other": config.field_missing_rate, "record": config.record_missing_rate}
        self.tables = make_tables(view, table_std)
        if config.match_logit > 0:
            start_in_order(self.tables, view, table_std)
        self.inputs = InputLayer(view, self.tables, rates)
        self.candidate_embedding = PartEmbedding(view, "candidate", self.tables, rates)
        user_width, candidate_width = self.inputs.user_width, self.candidate_embedding.width
        self.farm = FarmUser(config, view) if config.arch == "farm" else None
        if self.farm is not None:
            attention = config.heads * config.head_width
            queries = attention * len(self.farm.targets)
            self.query_candidate = nn.Linear(candidate_width, queries, bias=False)
            self.query_user = nn.Linear(user_width, queries)
            candidate_width += queries
            if config.match_logit > 0:
                self._look_for_equals(self.farm, table_std)
        user_width += view.width("video") + view.width("live")
        self.head = MultitaskHead(config, len(view.tasks), candidate_width, user_width)

    def _look_for_equals(self, farm: FarmUser, table_std: float) -> None:
        """Initial projections of candidates against events, and of live events against videos."""
        c, view = self.config, self.view
        weights, biases = self.query_candidate.weight, self.query_user.bias
        parts = zip(weights.chunk(len(farm.targets)), biases.chunk(len(farm.targets)), strict=True)
        for (name, target), (weight, bias) in zip(farm.targets.items(), parts, strict=True):
            assert isinstance(target, TargetAttention)
            shared = shared_columns(view, "candidate", MASKS[name])
            look_for_equals(weight, bias, target.projections, shared, c.match_logit, table_std)
        for filters in (farm.video_frequency, farm.live_frequency):
            if filters is not None:
                start_as_high_pass(filters)
        if farm.video_preference is not None and farm.live_preference is not None:
            start_alike(farm.video_preference, farm.live_preference, shared_columns(view, "video", "live"), table_std)
        if farm.fuse is not None:
            cross, shared = farm.fuse.cross, shared_columns(view, "live", "video")
            look_for_equals(cross.query.weight, cross.query.bias, cross.keys_values, shared, c.match_logit, table_std)
            if c.residual:  # what is found in the video history starts beside what Eq. 17 looks for, not over it
                for _, columns in shared_columns(view, "candidate", "live"):
                    nn.init.zeros_(cross.out.weight[columns])

    def user_state(
        self, video: Tensor, video_length: Tensor, live: Tensor, live_length: Tensor, user: Tensor, now: Tensor
    ) -> tuple[UserState, Preferences | None]:
        """Everything that does not depend on the candidate.  Inputs: feature_store.matrices.UserInputs."""
        histories = self.inputs.histories(video, video_length, live, live_length, now)
        embedded = self.inputs.users(user, now)  # [U, Du]
        means = [
            masked_mean(histories.video, histories.video_valid),
            masked_mean(histories.live, histories.live_valid),
        ]
        head_user = {"head_user": self.head.user_part(torch.cat([embedded, *means], dim=-1))}
        if self.farm is None:
            return head_user, None
        state, preferences = self.farm(histories)
        return state | head_user | {"query_user": self.query_user(embedded)}, preferences

    def candidate_logits(self, state: UserState, candidates: Tensor, tile_user: Tensor) -> Tensor:
        """candidates [T, K, Fc] int64, tile_user [T] the user of each tile -> logits [T, K, tasks]"""
        embedded = self.candidate_embedding(self._drop_record(candidates), torch.zeros_like(candidates[..., 0]))

        def of_tiles(tensor: Tensor) -> Tensor:
            return tensor.index_select(0, tile_user)

        head_user = of_tiles(state["head_user"])[:, None]  # [T, 1, P]
        if self.farm is None:
            return self.head(embedded, head_user)  # type: ignore[no-any-return]
        query = self.query_candidate(embedded) + of_tiles(state["query_user"])[:, None]  # [T, K, A H d]
        parts = [embedded]
        for (name, attention), part in zip(
            self.farm.targets.items(), query.chunk(len(self.farm.targets), -1), strict=True
        ):
            keys, values = of_tiles(state[f"{name}_keys"]), of_tiles(state[f"{name}_values"])
            valid = of_tiles(state[f"{MASKS[name]}_valid"])
            parts.append(attention(part, keys, values, valid))  # F_hat (Eq. 11, 17)
        return self.head(torch.cat(parts, dim=-1), head_user)  # type: ignore[no-any-return]  # Eq. 18

    def _drop_record(self, candidates: Tensor) -> Tensor:
        """In training, read an author's attributes, not the ids, as missing now and then: an unknown author's are."""
        rate = self.config.record_missing_rate
        if not self.training or rate == 0:
            return candidates
        dropped = torch.rand(candidates.shape[:-1], device=candidates.device) < rate
        columns = torch.tensor([c not in REQUEST_CANDIDATE for c in self.view.columns("candidate")])
        return torch.where(dropped[..., None] & columns.to(candidates.device), MISSING, candidates)
