"""Failures in one line."""

from __future__ import annotations

from feature_store.store import StoreError


def one_line(error: Exception) -> str:
    """What an error says, with its kind where that is needed to understand it."""
    text = " ".join(str(error).split()) or repr(error)
    return text if isinstance(error, (ValueError, RuntimeError, StoreError)) else f"{type(error).__name__}: {text}"
