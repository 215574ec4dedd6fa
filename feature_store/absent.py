"""A store that could not be reached."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from feature_store.events.batch import EventBatch
from feature_store.schema import RecordSchema
from feature_store.store import StoreAnswer, StoreUnreachable


class AbsentStore:
    """Knows nothing and takes nothing: StoreUnreachable, whatever is asked."""

    def __init__(self, why: str, schema: RecordSchema) -> None:
        """schema: that the store should have."""
        self._why, self.schema = why, schema

    async def read(
        self, user_id: int, author_ids: Sequence[int] | np.ndarray, live_ids: np.ndarray | None = None
    ) -> StoreAnswer:
        raise StoreUnreachable(self._why)

    async def accept(self, batch: EventBatch) -> None:
        """As a Sink (feature_store.events.sink)."""
        raise StoreUnreachable(self._why)

    async def close(self) -> None:
        """Nothing is open."""
