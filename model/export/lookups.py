"""`PartEmbedding` for serving: the same rows and the same embedding, all fields of a kind at once.

Letters: ... any leading axes, F columns of a matrix, I of them folded, B bucketed, D width of the concatenation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from feature_store.schema import MISSING
from model.embedding import BitSum, PartEmbedding, mix

_NEVER = 2**63 - 1  # no int64 is above it


class FoldedRows(nn.Module):
    """Rows of all ids and categories: values [I, ...], ids first -> rows [I, ...]"""

    moduli: Tensor

    def __init__(self, ids: int, rows: Sequence[int], axes: int) -> None:
        super().__init__()
        self.ids, self.categories = ids, len(rows) - ids
        moduli = torch.tensor([count - 1 for count in rows]).reshape(-1, *[1] * axes)
        self.register_buffer("moduli", moduli, persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        known = values
        if self.categories == 0:
            known = mix(values)
        elif self.ids:
            known = torch.cat([mix(values[: self.ids]), values[self.ids :]])
        return torch.where(values == MISSING, 0, 1 + torch.remainder(known, self.moduli))


class BucketedRows(nn.Module):
    """Rows of all numbers and times: values [B, ...], times first, now [...] -> rows [B, ...]"""

    edges: Tensor

    def __init__(self, times: int, boundaries: Sequence[Tensor], axes: int) -> None:
        super().__init__()
        self.times = times
        # v >= e is v > e - 1, and nothing is above the greatest int64: so tables of unequal length share one comparison
        edges = torch.full((len(boundaries), max(len(b) for b in boundaries)), _NEVER)
        for row, edge in zip(edges, boundaries, strict=True):
            row[: len(edge)] = edge - 1
        edges = edges.reshape(len(boundaries), *[1] * axes, -1)
        self.register_buffer("edges", edges, persistent=False)

    def forward(self, values: Tensor, now: Tensor) -> Tensor:
        if self.times:
            seen = values[: self.times]
            lags = torch.where(seen == MISSING, MISSING, now - seen)
            values = torch.cat([lags, values[self.times :]]) if self.times < len(self.edges) else lags
        return (values[..., None] > self.edges).sum(-1)


class Lookups(nn.Module):
    """What `PartEmbedding` gives in eval mode, of several parts over the same axes: each kind of field in one go.

    forward: columns of all parts [F, ...] int64, now [...] quantised -> [..., D] of each part
    """

    def __init__(self, parts: Sequence[PartEmbedding], axes: int) -> None:
        """axes: how many axes `...` stands for."""
        super().__init__()
        self.fields, columns = [], 0  # of all parts, each with its column
        for part in parts:
            used = [p for p in part.positions if p is not None]
            places = [None if p is None else p + columns for p in part.positions]
            self.fields += list(zip(part.fields, part.table_names, places, part.rows, strict=True))
            columns += max(used, default=-1) + 1
        self.widths = [len(part.fields) for part in parts]
        self.tables = nn.ModuleDict({name: table for part in parts for name, table in part.tables.items()})
        ids, categories, times, numbers = (self._of_kind(kind) for kind in ("id", "category", "time", "number"))
        self.folded_columns, self.bucketed_columns = (
            self._columns(fields, columns) for fields in (ids + categories, times + numbers)
        )
        self.place = {field: slot for slot, field in enumerate(ids + categories + times + numbers)}
        rows = [self.fields[field][0].rows for field in ids + categories]
        self.folded = FoldedRows(len(ids), rows, axes) if rows else None
        edges = [self.fields[field][3].get_buffer("edges") for field in times + numbers]
        self.bucketed = BucketedRows(len(times), edges, axes) if edges else None
        self.others = nn.ModuleDict(
            {str(index): rows for index, (_, _, _, rows) in enumerate(self.fields) if index not in self.place}
        )

    @property
    def dtype(self) -> torch.dtype:
        return next(self.tables.parameters()).dtype

    def _of_kind(self, kind: str) -> list[int]:
        return [index for index, (field, *_) in enumerate(self.fields) if field.kind == kind]

    def _columns(self, fields: Sequence[int], columns: int) -> nn.Buffer | None:
        """Where their values stand; None when that is all columns in order."""
        places = [self.fields[field][2] for field in fields]
        return None if places == list(range(columns)) else nn.Buffer(torch.tensor(places).long(), persistent=False)

    def forward(self, columns: Tensor, now: Tensor | None = None) -> list[Tensor]:
        rows: list[Tensor] = []
        if self.folded is not None:
            rows += self.folded(_select(columns, self.folded_columns)).split(1)
        if self.bucketed is not None:
            rows += self.bucketed(_select(columns, self.bucketed_columns), now).split(1)
        found = [self._field(field, columns, rows, now) for field in range(len(self.fields))]
        embedded = []
        for width in self.widths:
            embedded.append(torch.cat(found[:width], dim=-1)[0])
            found = found[width:]
        return embedded

    def _field(self, field: int, columns: Tensor, rows: list[Tensor], now: Tensor | None) -> Tensor:
        """[1, ..., width]"""
        _, name, position, _ = self.fields[field]
        table = self.tables[name]
        assert isinstance(table, nn.Embedding)
        if field in self.place:
            return functional.embedding(rows[self.place[field]], table.weight)
        assert now is not None
        values = now[None] if position is None else columns[position : position + 1]
        other = self.others[str(field)]
        if isinstance(other, BitSum):
            return other(values, table.weight)  # type: ignore[no-any-return]
        return functional.embedding(other(values, now), table.weight)


def _select(columns: Tensor, places: Tensor | None) -> Tensor:
    return columns if places is None else columns.index_select(0, places)
