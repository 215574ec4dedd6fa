"""Lets processes begin at the same moment.  Without the imports of other helpers, because each racer pays for them."""

from __future__ import annotations

import os
import time
from pathlib import Path

PATIENCE_S = 30.0


def meet(folder: Path, count: int) -> None:
    """Return when `count` processes have come."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / str(os.getpid())).touch()
    until = time.monotonic() + PATIENCE_S
    while len(list(folder.iterdir())) < count:
        if time.monotonic() > until:
            raise TimeoutError(f"{folder}: fewer than {count} came")
