"""`"debug": true`: how fresh what was read of the user is.

Letters: E stored events of a domain.
"""

from __future__ import annotations

import numpy as np

from feature_store.matrices import UserInputs
from feature_store.records import UserRecord, known_at
from feature_store.schema import MISSING


def show_freshness(user: UserRecord | None, inputs: UserInputs, now_ms: int) -> dict[str, object]:
    """The `debug` of an answer (service.contract.Debug).

    user: as read, None when not known;  inputs: what the model read of it;  now_ms: the time of the request.
    """
    return {
        "user": {"known": user is not None, "version": 0 if user is None else user.version},
        "video": _history(None if user is None else user.video, int(inputs.video_length[0]), now_ms),
        "live": _history(None if user is None else user.live, int(inputs.live_length[0]), now_ms),
    }


def _history(stored: np.ndarray | None, read: int, now_ms: int) -> dict[str, int | None]:
    if stored is None:
        return {"events": read, "stored": 0, "newest_age_ms": None}
    return {"events": read, "stored": len(stored), "newest_age_ms": newest_age_ms(stored, now_ms)}


def newest_age_ms(stored: np.ndarray, now_ms: int) -> int | None:
    """Of the newest of a history's events [E]; None when there is none, or its time is not known."""
    if len(stored) == 0:
        return None
    newest = int(known_at(stored).max())  # [E]; MISSING is the least of all
    return None if newest == MISSING else now_ms - newest
