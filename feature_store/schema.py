"""The record schema: what is stored of an event, an author and a user.

A store is of one record schema.  A schema is data (a JSON file); the default is the paper's (FARM, section 2.2).
"""

from __future__ import annotations

from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

MISSING = -(2**63)
"""A value that is not known, in every int64 matrix.  `null` outside; the least value of its dtype where stored."""

Domain = Literal["video", "live"]
DOMAINS: tuple[Domain, ...] = ("video", "live")
StoredType = Literal["i1", "i2", "i4", "i8"]

EVENT_KEYS = ("view_id", "event_time", "known_after")
"""Every event has them: the view, its start [ms since 1970], and when its outcome was known, in ms after the start."""


class StoredField(BaseModel):
    """One column of a record: a signed little-endian integer whose least value means "missing"."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    dtype: StoredType
    description: str = ""

    @property
    def bounds(self) -> tuple[int, int]:
        """Least and greatest storable value; the dtype's own least value is kept for "missing"."""
        info = np.iinfo(np.dtype("<" + self.dtype))
        return int(info.min) + 1, int(info.max)


class RecordSchema(BaseModel):
    """Names and dtypes of a video event, a live event, an author and a user, and the length of a stored history.

    Example: ``default_schema().dtype("live").itemsize``
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: int = Field(ge=1)
    ids: Literal["integer", "string"] = "integer"  # what ids are at the edges; strings are hashed to 64 bits (ids.py)
    history_length: int = Field(
        ge=1, le=10_000
    )  # events of a domain that a store keeps for a user and a model may read
    history_spare: int = Field(default=8, ge=0)  # kept beyond it, so that views in progress displace none
    author_lives: int = Field(default=1, ge=1, le=4096)  # newest live rooms of an author whose attributes are kept
    behaviours: tuple[str, ...]  # bit i of a `behaviours` field is behaviours[i]
    video: tuple[StoredField, ...]
    live: tuple[StoredField, ...]
    author: tuple[StoredField, ...]
    user: tuple[StoredField, ...]

    @model_validator(mode="after")
    def _check(self) -> RecordSchema:
        required = {"video": EVENT_KEYS, "live": EVENT_KEYS, "author": ("author_id", "live_id"), "user": ("user_id",)}
        for record, keys in required.items():
            names = [field.name for field in self.fields(record)]
            if len(names) != len(set(names)):
                raise ValueError(f"{record}: a field is named twice")
            for key in keys:
                if key not in names:
                    raise ValueError(f"{record}: the field {key!r} is required")
        if len(self.behaviours) > 31:
            raise ValueError("behaviours: at most 31 bits")
        return self

    def fields(self, record: str) -> tuple[StoredField, ...]:
        """The columns of "video", "live", "author" or "user"."""
        fields: tuple[StoredField, ...] = getattr(self, record)
        return fields

    def dtype(self, record: str) -> np.dtype[np.void]:
        """The packed little-endian structured dtype of one record."""
        return self._dtypes[record]

    @cached_property
    def _dtypes(self) -> dict[str, np.dtype[np.void]]:
        return {
            record: np.dtype([(field.name, "<" + field.dtype) for field in self.fields(record)])
            for record in ("video", "live", "author", "user")
        }

    @classmethod
    def load(cls, path: str | Path) -> RecordSchema:
        """Read a schema file; ValueError names the field that is wrong."""
        return cls.model_validate_json(Path(path).read_text())

    def save(self, path: str | Path) -> None:
        Path(path).write_text(self.model_dump_json(indent=1) + "\n")


def default_schema() -> RecordSchema:
    """The paper's fields (FARM, section 2.2)."""
    text = resources.files("feature_store").joinpath("schemas/default.json").read_text()
    return RecordSchema.model_validate_json(text)


def widen(column: np.ndarray) -> np.ndarray:
    """A stored column as int64, its dtype's least value turned into MISSING.  Shape is kept."""
    wide = column.astype(np.int64)
    if column.dtype.itemsize < 8:
        wide[column == np.iinfo(column.dtype).min] = MISSING
    return wide
