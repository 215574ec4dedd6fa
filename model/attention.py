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
    logits = query @ keys  # [U, H, Q, L]
    logits = logits.masked_fill(~valid[:, None, None, :], torch.finfo(logits.dtype).min)
    mixed = torch.softmax(logits, dim=-1) @ values  # [U, H, Q, d]
    return mixed.transpose(1, 2).flatten(2)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[U, N, H d] -> [U, H, N, d]"""
    return torch.unflatten(x, -1, (heads, -1)).transpose(1, 2)


class KeysValues(nn.Module):
    """Key and value projections of one attention.  They do not depend on the query."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, 1 / math.sqrt(head_width)
        self.key = nn.Linear(width, heads * head_width, bias=False)
        self.value = nn.Linear(width, heads * head_width, bias=False)

    def forward(self, events: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """events [U, L, D], valid [U, L] -> keys [U, H, d, L], values [U, H, L, d]"""
        keys = split_heads(self.key(events), self.heads).transpose(2, 3) * self.scale
        values = split_heads(self.value(events) * valid[..., None], self.heads)
        return keys, values


class SequenceAttention(nn.Module):
    """Attention of one history over another: MH-Self-Att (Eq. 12) and MH-Cross-Att (Eq. 16).

    forward: queries [U, Lq, Dq], events [U, L, D], masks [U, Lq], [U, L] -> [U, Lq, Dq], zeros in the pads.
    """

    def __init__(self, query_width: int, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(query_width, heads * head_width, bias=False)
        self.keys_values = KeysValues(width, heads, head_width)
        self.out = nn.Linear(heads * head_width, query_width, bias=False)

    def forward(self, queries: Tensor, events: Tensor, query_valid: Tensor, valid: Tensor) -> Tensor:
        query = split_heads(self.query(queries), self.heads)  # [U, H, Lq, d]
        keys, values = self.keys_values(events, valid)
        out: Tensor = self.out(attend(query, keys, values, valid))  # [U, Lq, Dq]
        return out * query_valid[..., None]


class TargetAttention(nn.Module):
    """MH-Target-Att (Eq. 11, 17) of candidates over one history of their user.

    Keys and values are computed once per user (`keys_values`), the attention once per candidate (`forward`).
    """

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.keys_values = KeysValues(width, heads, head_width)
        self.out = nn.Linear(heads * head_width, heads * head_width, bias=False)

    def forward(self, query: Tensor, keys: Tensor, values: Tensor, valid: Tensor) -> Tensor:
        """query [T, K, H d], keys [T, H, d, L], values [T, H, L, d], valid [T, L] -> [T, K, H d]"""
        out: Tensor = self.out(attend(split_heads(query, self.heads), keys, values, valid))
        return out
