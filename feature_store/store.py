"""The feature store: one protocol, its answers and errors, and the choice of a backend by URL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import numpy as np

from feature_store.records import UserBatch, UserRecord
from feature_store.schema import Domain, RecordSchema

SCHEMES = ("lmdb",)
_LATER = ("redis", "rediss", "redis+sentinel", "redis+cluster")


class StoreError(Exception):
    """The store cannot do what was asked; one line for whoever runs it."""


class SchemaMismatch(StoreError):  # noqa: N818 - it is what was found
    """The store holds records of another schema than the one asked for."""


@dataclass(frozen=True)
class StoreAnswer:
    """What one read found.  What is not there is missing here; a read does not raise for it."""

    user: UserRecord | None  # None: unknown, or corrupt
    authors: dict[int, np.ndarray]  # records "author" of each known author asked for, newest live room last
    corrupt: bool  # the user's record is there and cannot be read


@dataclass(frozen=True)
class StoreStats:
    """How much a store holds."""

    users: int
    authors: int


class FeatureStore(Protocol):
    """Histories and attributes of users, attributes of authors.  Used by one process; open one in each.

    Every method raises StoreError when the store fails, and ValueError when records are not of the schema.

    Example::

        async with open_store("lmdb:///var/lib/farm/store") as store:
            answer = await store.read(user_id, author_ids)
    """

    @property
    def schema(self) -> RecordSchema:
        """What the records are made of."""

    async def read(self, user_id: int, author_ids: Sequence[int] | np.ndarray) -> StoreAnswer:
        """One user and some authors, of one moment, in one round trip."""

    async def put_users(self, batch: UserBatch) -> None:
        """Replace whole users, attributes and histories, in bulk; users of one batch may become visible at intervals.

        Events may be in any order and number: they are merged as `merge_histories` does, which costs nothing
        when they are merged already.
        """

    async def put_authors(self, records: np.ndarray) -> None:
        """Add records "author" [E] in order of arrival; each author keeps its newest `author_lives` live rooms."""

    async def merge_events(self, domain: Domain, user_ids: np.ndarray, records: np.ndarray) -> None:
        """Merge events [E] of users [E] into their histories, all or nothing; unknown users come to be."""

    async def users(self, limit: int) -> list[int]:
        """Ids of at most `limit` users."""

    async def stats(self) -> StoreStats:
        """How much is stored."""

    async def close(self) -> None:
        """Finish writes under way and let go of the store."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_store(url: str, schema: RecordSchema | None = None, create: bool = False) -> FeatureStore:
    """The store at a URL: ``lmdb:///absolute/path`` or ``lmdb://relative/path``.

    schema: what the store must hold; None takes what it holds (the default schema when it is created here).
    create: make the store when there is none.
    Raises SchemaMismatch with the difference, StoreError for a URL that means nothing or a store that is not there.
    """
    scheme, separator, rest = url.partition("://")
    if scheme in _LATER:
        raise StoreError(f"store {url!r}: Redis is not supported in this version yet; use lmdb:///path")
    if not separator or scheme not in SCHEMES:
        raise StoreError(f"store {url!r}: unknown scheme; known are {', '.join(f'{name}://' for name in SCHEMES)}")
    if not rest:
        raise StoreError(f"store {url!r}: the path is missing, as in lmdb:///absolute/path")
    from feature_store.lmdb_store import LmdbStore  # a backend's library is loaded only by who uses it

    return LmdbStore(rest, schema, create)


def require_same_schema(stored: RecordSchema, asked: RecordSchema, where: str) -> None:
    """SchemaMismatch with every difference that matters to stored bytes or their meaning; descriptions do not."""
    differences = [
        f"{name} is {getattr(stored, name)}, asked {getattr(asked, name)}"
        for name in ("name", "version", "ids", "history_length", "history_spare", "author_lives", "behaviours")
        if getattr(stored, name) != getattr(asked, name)
    ]
    for record in ("video", "live", "author", "user"):
        differences += _field_differences(stored, asked, record)
    if differences:
        raise SchemaMismatch(f"store {where}: another record schema: {'; '.join(differences)}")


def _field_differences(stored: RecordSchema, asked: RecordSchema, record: str) -> list[str]:
    if stored.dtype(record) == asked.dtype(record):
        return []
    has = {field.name: field.dtype for field in stored.fields(record)}
    wants = {field.name: field.dtype for field in asked.fields(record)}
    differences = [
        f"{record}.{name} is {has.get(name, 'absent')}, asked {wants.get(name, 'absent')}"
        for name in has | wants
        if has.get(name) != wants.get(name)
    ]
    return differences or [f"{record}: fields are in another order"]
