"""Multi-head attention over histories of any length, none included (Eq. 11, 12, 16, 17).

Plain products and a masked softmax: exported and run alike everywhere.  Values of pads are zero, so a user without
events gets 0, with finite gradients.
Letters: U users, L events, H heads, d width of a head, T tiles, K candidates of a tile, D width of an event.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def attend(query: Tensor, keys: Tensor, values: Tensor, valid: Tensor) -> Tensor:
    """softmax(query keys) values over valid events.

    query [U, H, Q, d], keys [U, H, d, L] scaled by 1/sqrt(d), values [U, H, L, d] zero in pads, valid [U, L]
    -> [U, Q, H d]
    """
    mixed = attention_weights(query, keys, valid) @ values  # [U, H, Q, d]
    return mixed.transpose(1, 2).flatten(2)


def attention_weights(query: Tensor, keys: Tensor, valid: Tensor) -> Tensor:
    """softmax(query keys) over valid events: shapes as in `attend` -> [U, H, Q, L]"""
    logits = query @ keys  # [U, H, Q, L]
    logits = logits.masked_fill(~valid[:, None, None, :], torch.finfo(logits.dtype).min)
    return torch.softmax(logits, dim=-1)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[U, N, H d] -> [U, H, N, d]"""
    return torch.unflatten(x, -1, (heads, -1)).transpose(1, 2)


class KeysValues(nn.Module):
    """Key and value projections of one attention.  They do not depend on the query.

    With a sink there is one more slot, of a learned key and the value 0, and values have a bias: n events that match
    share n / (n + 1) of the weight, not all of it, and the bias carries how much that is.  So the answer tells how much
    evidence there is, as a smoothed rate does.  (DIN, Zhou et al., KDD 2018, section 4.3, leaves the softmax out for
    the same reason.)
    """

    def __init__(self, width: int, heads: int, head_width: int, sink: bool) -> None:
        super().__init__()
        self.heads, self.scale = heads, 1 / math.sqrt(head_width)
        self.key = nn.Linear(width, heads * head_width, bias=False)
        self.value = nn.Linear(width, heads * head_width, bias=sink)
        self.sink_key = nn.Parameter(torch.zeros(heads, head_width, 1)) if sink else None

    def forward(self, events: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """events [U, L, D], valid [U, L] -> keys [U, H, d, L], values [U, H, L, d], valid [U, L]; L + 1 with a sink."""
        keys = split_heads(self.key(events), self.heads).transpose(2, 3) * self.scale
        values = split_heads(self.value(events) * valid[..., None], self.heads)
        if self.sink_key is None:
            return keys, values, valid
        sink = self.sink_key.to(keys.dtype).expand(keys.shape[0], -1, -1, -1)  # [U, H, d, 1]
        value = torch.zeros_like(values[:, :, :1])  # [U, H, 1, d]
        always = torch.ones_like(valid[:, :1])
        return torch.cat([keys, sink], -1), torch.cat([values, value], 2), torch.cat([valid, always], 1)


class SequenceAttention(nn.Module):
    """Attention of one history over another: MH-Self-Att (Eq. 12) and MH-Cross-Att (Eq. 16).

    forward: queries [U, Lq, Dq], events [U, L, D], masks [U, Lq], [U, L] -> [U, Lq, Dq], zeros in the pads.
    """

    def __init__(self, query_width: int, width: int, heads: int, head_width: int, sink: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(query_width, heads * head_width, bias=sink)
        self.keys_values = KeysValues(width, heads, head_width, sink)
        self.out = nn.Linear(heads * head_width, query_width, bias=False)

    def forward(self, queries: Tensor, events: Tensor, query_valid: Tensor, valid: Tensor) -> Tensor:
        query = split_heads(self.query(queries), self.heads)  # [U, H, Lq, d]
        keys, values, mask = self.keys_values(events, valid)
        out: Tensor = self.out(attend(query, keys, values, mask))  # [U, Lq, Dq]
        return out * query_valid[..., None]


class TargetAttention(nn.Module):
    """MH-Target-Att (Eq. 11, 17) of candidates over one history of their user.

    Keys and values are computed once per user (`projections`), the attention once per candidate (`forward`).
    """

    def __init__(self, width: int, heads: int, head_width: int, sink: bool) -> None:
        super().__init__()
        self.heads = heads
        self.projections = KeysValues(width, heads, head_width, sink)
        self.out = nn.Linear(heads * head_width, heads * head_width, bias=False)

    def forward(self, query: Tensor, keys: Tensor, values: Tensor, valid: Tensor) -> Tensor:
        """query [T, K, H d], keys [T, H, d, L], values [T, H, L, d], valid [T, L] -> [T, K, H d]; L with the sink."""
        out: Tensor = self.out(attend(split_heads(query, self.heads), keys, values, valid))
        return out
