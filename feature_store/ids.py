"""Ids at the edges (JSON, logs) to the signed 64-bit ids of the store and the model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import blake2b
from typing import Literal

import numpy as np

from feature_store.schema import MISSING

IdKind = Literal["integer", "string"]

_LEAST, _GREATEST = -(2**63) + 1, 2**63 - 1
_DECIMAL = re.compile(r"0|-?[1-9][0-9]{0,18}")


def to_id64(value: object, ids: IdKind) -> int:
    """One id as a signed 64-bit integer, never -2^63 (which is MISSING).

    "integer": an integer, or a decimal string of one, because JSON numbers above 2^53 lose digits on the way.
    "string": a string is hashed (first 8 bytes, little endian, of the BLAKE2b of its UTF-8); an integer is as it is.
    ValueError says what is allowed.
    """
    if isinstance(value, str):
        if ids == "string":
            return _hash64(value)
        if _DECIMAL.fullmatch(value):
            return _in_range(int(value), value)
    elif isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return _in_range(int(value), value)
    allowed = "an integer or a decimal string of one" if ids == "integer" else "a string or an integer"
    raise ValueError(f"an id must be {allowed}, not {shown(value)}")


def ids_to_int64(values: Sequence[object] | np.ndarray, ids: IdKind) -> np.ndarray:
    """A column of ids as [N] int64; None becomes MISSING.  ValueError as `to_id64`, with the row."""
    if isinstance(values, np.ndarray):
        if values.dtype.kind == "i" and not (values == MISSING).any():
            return values.astype(np.int64)
        values = values.tolist()
    out = np.empty(len(values), np.int64)
    for row, value in enumerate(values):
        try:
            out[row] = MISSING if value is None else to_id64(value, ids)
        except ValueError as error:
            raise ValueError(f"row {row}: {error}") from None
    return out


def _hash64(text: str) -> int:
    try:
        digest = blake2b(text.encode()).digest()
    except UnicodeEncodeError:
        raise ValueError(f"an id must be text that UTF-8 can carry, not {shown(text)}") from None
    return max(int.from_bytes(digest[:8], "little", signed=True), _LEAST)


def _in_range(number: int, value: object) -> int:
    if not _LEAST <= number <= _GREATEST:
        raise ValueError(f"an id must be within {_LEAST} and {_GREATEST}, not {shown(value)}")
    return number


def shown(value: object) -> str:
    """A value in an error message: as JSON would name it, short enough for one line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = "an object" if isinstance(value, dict) else "a list" if isinstance(value, list) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
