"""A store that is read in parts, so that what came is used when the rest does not come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from feature_store.authors import Authors
from feature_store.records import UserRecord


@runtime_checkable
class PartedStore(Protocol):
    """A store on the other side of a network, which remembers authors.  Letters: C authors asked for."""

    def keep_outdated_authors(self, age_s: float) -> None:
        """From now on keep authors until `age_s` after they were read, past the time in which they are used."""

    def look_up_authors(
        self, author_ids: Sequence[int] | np.ndarray, live_ids: np.ndarray | None
    ) -> tuple[Authors, list[tuple[int, int]]]:
        """Of authors [C] those that are remembered, and those to be fetched with the room that must be known of each.

        live_ids [C]: as `FeatureStore.read`.
        """

    async def fetch_authors(self, wanted: list[tuple[int, int]]) -> Mapping[int, np.ndarray]:
        """Those of `wanted` that are known.  StoreError.  What comes late is remembered, whoever waits for it."""

    def outdated_authors(self, author_ids: Sequence[int]) -> Authors:
        """Those that are kept past their time."""

    async def read_user(self, user_id: int) -> tuple[UserRecord | None, bool]:
        """One user, and whether there is a record that cannot be read.  StoreError."""
