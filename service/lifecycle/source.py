"""What a worker reads of users and authors, and where events go: the store, also one that comes after the service."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from feature_store.absent import AbsentStore
from feature_store.events.sink import Sink, open_sink
from feature_store.reading.reader import LadderReader
from feature_store.reading.settings import ReadingSettings
from feature_store.schema import RecordSchema
from feature_store.store import FeatureStore, StoreUnreachable, open_store
from service.lifecycle.failure import one_line

_RETRY_S = 1.0
_UNFIT_RETRY_S = 10.0  # somebody must mend it

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A store, and the ways into it.  A request takes one, and keeps it."""

    store: FeatureStore | AbsentStore
    reader: LadderReader
    sink: Sink


class SourceKeeper:
    """Opens the store at a URL; while its server cannot be reached there is an empty one in its place.

    schema: of that one: whether ids are text, what events are made of.

    StoreError at once when the store is there and of no use, or the URL means nothing.
    """

    def __init__(self, url: str, settings: ReadingSettings, schema: RecordSchema, retry_s: float = _RETRY_S) -> None:
        self._url, self._settings, self._retry_s = url, settings, retry_s
        self._ended, self._lock = threading.Event(), threading.Lock()
        self._fits: Callable[[FeatureStore], None] = lambda store: None
        self.unfit = ""  # why the store that has come cannot be read
        try:
            self.current = self._source(open_store(url))
        except StoreUnreachable as error:
            _log.error("%s; answering without it until it comes", error)
            absent = AbsentStore(str(error), schema)
            self.current = Source(absent, LadderReader(absent, settings), absent)

    @property
    def is_absent(self) -> bool:
        return isinstance(self.current.store, AbsentStore)

    def follow(self, fits: Callable[[FeatureStore], None]) -> None:
        """Take the store when it comes, if `fits` raises nothing for it."""
        self._fits = fits
        if self.is_absent:
            threading.Thread(target=self._wait_for_it, name="store", daemon=True).start()

    async def close(self) -> None:
        with self._lock:
            self._ended.set()
        await self.current.store.close()

    def _wait_for_it(self) -> None:
        while not self._ended.wait(_UNFIT_RETRY_S if self.unfit else self._retry_s):
            try:
                store = open_store(self._url)
                self._fits(store)
                source = self._source(store)
            except StoreUnreachable:
                continue
            except Exception as error:  # whatever it is: what is there may be mended
                self._complain(one_line(error))
                continue
            with self._lock:
                if self._ended.is_set():  # its connections are opened when it is used, and it never is
                    return
                self.current, self.unfit = source, ""
            _log.warning("the store has come")
            return

    def _complain(self, why: str) -> None:
        if why != self.unfit:
            _log.error("%s; not ready until it is mended", why)
        self.unfit = why

    def _source(self, store: FeatureStore) -> Source:
        return Source(store, LadderReader(store, self._settings), open_sink(store))
