"""Embedding layer (Eq. 8): raw int64 values to concatenated embeddings, everything in the graph.

Letters: ... any leading axes, F columns of the matrix, D width of the concatenation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from feature_store.schema import MISSING
from feature_store.view import ModelView, Part, ViewField

_MIX = -7046029254386353131  # 0x9E3779B97F4A7C15, 2^64 / golden ratio
_MIX_TWICE = 4354685564936845354  # the same times 2, in 64 bits
_MERSENNE = 2**31 - 1
_HOUR_MS = 3_600_000


def mix(ids: Tensor) -> Tensor:
    """Spread 64-bit ids over 0 .. 2^31 - 2 so that neighbours and multiples do not share rows.  Same shape, int64.

    The remainder by a prime brings every bit down, the square makes it no linear function, and again.  Products and
    remainders only: a shift of signed integers costs seven nodes in ONNX.
    """
    h = torch.remainder(ids * _MIX, _MERSENNE)
    return torch.remainder(h * (h * _MIX_TWICE + _MIX), _MERSENNE)


def quantise(now: Tensor, quantum_s: int) -> Tensor:
    """`now` [ms] floored to the lag quantum.  Same shape, int64."""
    quantum = quantum_s * 1000
    return now - torch.remainder(now, quantum)


class FieldRows(nn.Module):
    """Raw values of one field -> rows of its table.  Row 0 is "missing".  All comparisons stay in int64."""

    edges: Tensor

    def __init__(self, field: ViewField, view: ModelView) -> None:
        super().__init__()
        self.kind, self.rows = field.kind, field.rows
        self.offset_ms = view.utc_offset_s * 1000
        if field.kind in ("number", "time"):
            # The least edge lets a missing value alone fall below all edges, into row 0.
            self.register_buffer("edges", torch.tensor([MISSING + 1, *field.boundaries]), persistent=False)
        if field.kind == "hour":
            # Compared and not divided: ONNX has no floor division, and the exporter's goes through float32.
            self.register_buffer("edges", _HOUR_MS * torch.arange(24), persistent=False)

    def forward(self, values: Tensor, now: Tensor) -> Tensor:
        """values [...] int64, now [...] quantised, broadcastable -> rows [...] int64."""
        missing = values == MISSING
        if self.kind == "id":
            return torch.where(missing, 0, 1 + torch.remainder(mix(values), self.rows - 1))
        if self.kind == "category":
            return torch.where(missing, 0, 1 + torch.remainder(values, self.rows - 1))
        if self.kind == "hour":
            values = torch.remainder(values + self.offset_ms, 24 * _HOUR_MS)
        elif self.kind == "time":
            # A negative lag counts as 0 without a clamp, because no boundary lies below 1 ms (ModelView sees to it);
            # ONNX Runtime's Clip cuts int64 values at 32 bits.
            values = torch.where(missing, MISSING, now - values)
        return (values[..., None] >= self.edges).sum(-1)


class BitSum(nn.Module):
    """Sum of the rows of the bits that are set; row 0 alone when the set is missing."""

    bits: Tensor

    def __init__(self, field: ViewField) -> None:
        super().__init__()
        self.register_buffer("bits", torch.tensor([1 << i for i in range(field.rows)]), persistent=False)

    def forward(self, values: Tensor, table: Tensor) -> Tensor:
        """values [...] int64, table [1 + bits, D] -> [..., D]"""
        missing = (values == MISSING)[..., None]  # [..., 1]
        is_set = ((values[..., None] & self.bits) != 0) & ~missing  # [..., bits]
        return torch.cat([missing, is_set], dim=-1).to(table.dtype) @ table


class PartEmbedding(nn.Module):
    """The concatenated embedding of one part of the model view: a video or live event, a candidate, a user, a context.

    forward: matrix [..., F] int64 (view.columns(part)), now [...] quantised ms -> [..., D], D = view.width(part).
    """

    def __init__(self, view: ModelView, part: Part, tables: nn.ModuleDict, missing_rates: dict[str, float]) -> None:
        super().__init__()
        self.fields = view.fields(part)
        self.table_names = [table_key(view.table_name(part, field)) for field in self.fields]
        columns = view.columns(part)
        self.positions = [None if f.source is None else columns.index(f.source) for f in self.fields]
        self.rows = nn.ModuleList(BitSum(f) if f.kind == "behaviours" else FieldRows(f, view) for f in self.fields)
        self.tables = nn.ModuleDict({name: tables[name] for name in self.table_names})
        self.missing_rates = [missing_rates.get(f.kind, missing_rates["other"]) for f in self.fields]
        self.width = view.width(part)

    def forward(self, matrix: Tensor, now: Tensor) -> Tensor:
        parts = []
        for position, name, rows, rate in zip(
            self.positions, self.table_names, self.rows, self.missing_rates, strict=True
        ):
            values = now if position is None else self._drop(matrix[..., position], rate)
            table = self.tables[name]
            assert isinstance(table, nn.Embedding)
            parts.append(
                rows(values, table.weight)
                if isinstance(rows, BitSum)
                else functional.embedding(rows(values, now), table.weight, sparse=table.sparse)
            )
        return torch.cat(parts, dim=-1)  # [..., D]

    def _drop(self, values: Tensor, rate: float) -> Tensor:
        """In training, read a field as missing now and then: row 0 must be good when an answer is degraded."""
        if not self.training or rate == 0:
            return values
        return torch.where(torch.rand(values.shape, device=values.device) < rate, MISSING, values)


def table_key(name: str) -> str:
    """A table's name as a module name, which may hold no dot."""
    return name.replace(".", "_")


def make_tables(view: ModelView, std: float) -> nn.ModuleDict:
    """One embedding table per table name of the view, drawn from N(0, std)."""
    tables: dict[str, nn.Module] = {}
    for part, field in view.all_fields():
        key = table_key(view.table_name(part, field))
        if key not in tables:
            tables[key] = nn.Embedding(field.table_rows, field.width)
            nn.init.normal_(tables[key].weight, std=std)  # type: ignore[arg-type]
    return nn.ModuleDict(tables)


def event_mask(length: Tensor, slots: int) -> Tensor:
    """Which slots hold an event: [U] lengths -> [U, L] bool."""
    return torch.arange(slots, device=length.device) < length[:, None]


def masked_mean(x: Tensor, valid: Tensor) -> Tensor:
    """Mean over the events, 0 without any: x [U, L, D], valid [U, L] -> [U, D]  (Mean of Eq. 13)."""
    weight = valid.to(x.dtype)
    total = (x * weight[..., None]).sum(1)
    return total / weight.sum(1, keepdim=True).clamp(min=1.0)
