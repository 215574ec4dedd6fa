"""The model view: what a model reads of the records, and how each field becomes an embedding.

It travels in the artifact.  A store serves every model whose view is a subset of its records.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from feature_store.schema import RecordSchema

Part = Literal["video", "live", "candidate", "user", "context"]
PARTS: tuple[Part, ...] = ("video", "live", "candidate", "user", "context")
REQUEST_CONTEXT = ("page",)
"""What a request may carry beside user and candidates."""
REQUEST_CANDIDATE = ("author_id", "live_id")
REQUEST_USER = ("user_id",)

Kind = Literal["id", "category", "number", "time", "behaviours", "hour"]


class ViewField(BaseModel):
    """One embedded field.

    id          64-bit, mixed and folded into rows 1..rows-1 of its table
    category    folded without mixing: 1 + value mod (rows - 1)
    number      row 1 + how many `boundaries` are <= value
    time        a time in ms; row 1 + how many `boundaries` [ms] are <= lag = quantised now - value, at least 0
    behaviours  a bit set; the sum of the rows of the bits that are set
    hour        no column: the local hour of `now`
    Row 0 is "missing", everywhere.  Fields that name the same `table` share it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: Kind
    width: int = Field(ge=1)  # of the embedding
    column: str = ""  # of the record; the field's name when empty
    table: str = ""  # "part.name" when empty
    rows: int = 0  # id, category: rows of the table, row 0 included;  behaviours: number of bits
    boundaries: tuple[int, ...] = ()  # number, time: ascending

    @model_validator(mode="after")
    def _check(self) -> ViewField:
        if self.kind in ("id", "category", "behaviours") and self.rows < (1 if self.kind == "behaviours" else 2):
            raise ValueError(f"{self.name}: rows must be given and at least 2")
        ascending = all(a < b for a, b in pairwise(self.boundaries))
        if self.kind in ("number", "time") and not (self.boundaries and ascending):
            raise ValueError(f"{self.name}: boundaries must be given, strictly ascending")
        if self.kind == "time" and self.boundaries[0] < 1:
            raise ValueError(f"{self.name}: boundaries of a lag begin at 1 ms or later")
        return self

    @property
    def source(self) -> str | None:
        """The column of the int64 matrix that it reads; None for `hour`, which reads `now`."""
        return None if self.kind == "hour" else (self.column or self.name)

    @property
    def table_rows(self) -> int:
        """Rows of the embedding table, the missing row 0 included."""
        if self.kind in ("number", "time"):
            return len(self.boundaries) + 2
        if self.kind == "hour":
            return 25
        return self.rows + 1 if self.kind == "behaviours" else self.rows


class ModelView(BaseModel):
    """Fields by part, history length, clock rules and tasks of a model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    history_length: int = Field(default=50, ge=1)  # L, events of each domain (paper, 4.1.3)
    history_delay_s: int = Field(default=0, ge=0)  # a view is read when known_at <= now - history_delay_s
    lag_quantum_s: int = Field(default=60, ge=1)  # `now` is floored to it inside the graph
    utc_offset_s: int = 0  # of the local hour
    tasks: tuple[str, ...]
    video: tuple[ViewField, ...]
    live: tuple[ViewField, ...]
    candidate: tuple[ViewField, ...]
    user: tuple[ViewField, ...]
    context: tuple[ViewField, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> ModelView:
        if not self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise ValueError("tasks: at least one, each named once")
        shapes: dict[str, tuple[str, int, int]] = {}
        for part, field in self.all_fields():
            name = self.table_name(part, field)
            shape = (field.kind, field.table_rows, field.width)
            if shapes.setdefault(name, shape) != shape:
                raise ValueError(
                    f"{part}.{field.name}: the table {name!r} has kind, rows, width {shapes[name]} elsewhere"
                )
            if field.kind == "time" and part not in ("video", "live"):
                raise ValueError(f"{part}.{field.name}: `time` is a field of an event")
            if field.kind == "hour" and part != "context":
                raise ValueError(f"{part}.{field.name}: `hour` is a field of the context")
        return self

    def fields(self, part: Part) -> tuple[ViewField, ...]:
        fields: tuple[ViewField, ...] = getattr(self, part)
        return fields

    def all_fields(self) -> Iterator[tuple[Part, ViewField]]:
        for part in PARTS:
            for field in self.fields(part):
                yield part, field

    def table_name(self, part: Part, field: ViewField) -> str:
        return field.table or f"{part}.{field.name}"

    def columns(self, part: Part) -> tuple[str, ...]:
        """Column names of the int64 matrix of a part, in order, each once.

        "user" is the user's own columns; the matrix the user tower reads is user columns, then context columns.
        """
        return self._columns[part]

    @cached_property
    def _columns(self) -> dict[Part, tuple[str, ...]]:
        sources = {part: [field.source for field in self.fields(part)] for part in PARTS}
        return {part: tuple(dict.fromkeys(s for s in found if s is not None)) for part, found in sources.items()}

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        copied = super().model_copy(update=update, deep=deep)
        copied.__dict__.pop("_columns", None)  # it may be of other fields
        return copied

    def width(self, part: Part) -> int:
        """Width of the concatenated embedding of a part: D1 of "video", D2 of "live" (paper, Eq. 8)."""
        return sum(field.width for field in self.fields(part))

    def missing_from(self, schema: RecordSchema) -> list[str]:
        """What this view reads and a store of `schema` does not hold, as "record.field"; empty when it can serve."""
        held = {
            "video": {f.name for f in schema.video},
            "live": {f.name for f in schema.live},
            "candidate": {f.name for f in schema.author} | set(REQUEST_CANDIDATE),
            "user": {f.name for f in schema.user} | set(REQUEST_USER),
            "context": set(REQUEST_CONTEXT),
        }
        record = {"candidate": "author"}
        missing = [
            f"{record.get(part, part)}.{column}"
            for part in PARTS
            for column in self.columns(part)
            if column not in held[part]
        ]
        if self.history_length > schema.history_length:
            missing.append(f"history_length {self.history_length} (the store keeps {schema.history_length})")
        elif self.history_delay_s and self.history_length == schema.history_length:
            missing.append(
                f"history_length {self.history_length} before the last {self.history_delay_s} s (the store keeps "
                f"{schema.history_length} in all: views of those seconds displace what is read)"
            )
        return missing

    @classmethod
    def load(cls, path: str | Path) -> ModelView:
        return cls.model_validate_json(Path(path).read_text())

    def save(self, path: str | Path) -> None:
        Path(path).write_text(self.model_dump_json(indent=1) + "\n")
