"""Where checked events go: into a store that merges them at once, or into the log of one that has workers."""

from __future__ import annotations

import time
from typing import Protocol

from feature_store.events.batch import EventBatch
from feature_store.events.log import EventLog
from feature_store.events.metrics import count_applied
from feature_store.store import FeatureStore


class Sink(Protocol):
    """Takes events."""

    async def accept(self, batch: EventBatch) -> None:
        """When it returns, the events are as durable as the sink makes them.

        StoreError (LogBusy and NotDurable among them): perhaps not all were taken.  Send them again.
        """


class LmdbSink:
    """Merges events before it returns: in LMDB they are on disk then, and every process sees them."""

    def __init__(self, store: FeatureStore) -> None:
        self._store = store

    async def accept(self, batch: EventBatch) -> None:
        accepted_ms = int(1000 * time.time())
        count_applied(await self._store.apply(batch), [accepted_ms])


def open_sink(store: FeatureStore) -> Sink:
    """The sink of a store: its log when it has one.  It lives as long as the store."""
    return EventLog.of(store) or LmdbSink(store)
