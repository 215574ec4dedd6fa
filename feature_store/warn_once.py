"""Warnings that are written once, however often what they tell of is met."""

from __future__ import annotations

import logging
from functools import lru_cache


@lru_cache(maxsize=1000)
def warn_once(log: logging.Logger, message: str) -> None:
    """A damaged value may be read a thousand times a second.  Forgotten: what was not met for 1,000 other messages."""
    log.warning("%s", message)
