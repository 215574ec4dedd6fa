"""How this process counts, and whether: FARM_METRICS=false makes all counting functions do nothing.

Every module of metrics imports this before it makes its first.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, ParamSpec

from feature_store.cells import use_cells

SWITCH = "FARM_METRICS"

_OFF = ("0", "f", "false", "n", "no", "off")  # as pydantic reads the setting
_COUNTS = os.environ.get(SWITCH, "true").lower() not in _OFF

P = ParamSpec("P")

if _COUNTS:
    use_cells()


def metered(count: Callable[P, None]) -> Callable[P, None]:
    """A function that counts, or one that does nothing.  The environment is asked once."""
    return count if _COUNTS else _nothing


def _nothing(*_: Any, **__: Any) -> None:
    pass
