"""The feature store: one protocol, its answers and errors, and the choice of a backend by URL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np

from feature_store.events.batch import EventBatch
from feature_store.records import UserBatch, UserRecord
from feature_store.schema import RecordSchema

if TYPE_CHECKING:
    from feature_store.redis.settings import RedisSettings

REDIS_SCHEMES = (
    "redis",
    "rediss",
    "unix",
    "redis+unix",
    "redis+sentinel",
    "rediss+sentinel",
    "redis+cluster",
    "rediss+cluster",
)
SCHEMES = ("lmdb", *REDIS_SCHEMES)


class StoreError(Exception):
    """The store cannot do what was asked; one line for whoever runs it."""


class StoreUnreachable(StoreError):  # noqa: N818 - it is what was found
    """Nobody answers at the store's address, or not yet; it may come."""


class SchemaMismatch(StoreError):  # noqa: N818 - it is what was found
    """The store holds records of another schema than the one asked for."""


@dataclass(frozen=True)
class StoreAnswer:
    """What one read found.  What is not there is missing here; a read does not raise for it."""

    user: UserRecord | None  # None: unknown, or corrupt
    authors: Mapping[int, np.ndarray]  # records "author" of each known author asked for, newest live room last
    corrupt: bool  # the user's record is there and cannot be read


@dataclass(frozen=True)
class StoreStats:
    """How much a store holds."""

    users: int
    authors: int
    erased: int  # users of whom a tombstone is kept
    size_bytes: int  # on disk, or in the server's memory
    detail: dict[str, int | str]  # what else the backend can tell, such as its version


@dataclass(frozen=True)
class Applied:
    """What became of a batch of events."""

    events: int  # merged
    dropped: int  # of erased users


class FeatureStore(Protocol):
    """Histories and attributes of users, attributes of authors.  Used by one process; open one in each.

    Every write is merged with what is there, and every merge is commutative and idempotent (feature_store.merge), so
    order and repetition do no harm.  Nothing of an erased user that is not newer than the erasure is written again.
    Every method raises StoreError when the store fails, and ValueError when records are not of the schema.

    Example::

        async with open_store("lmdb:///var/lib/farm/store") as store:
            answer = await store.read(user_id, author_ids)
    """

    @property
    def schema(self) -> RecordSchema:
        """What the records are made of."""

    async def read(
        self, user_id: int, author_ids: Sequence[int] | np.ndarray, live_ids: np.ndarray | None = None
    ) -> StoreAnswer:
        """One user and some authors [C].  live_ids [C]: the room that must be known of each, MISSING for any; a cached
        author without it is read anew."""

    async def put_users(self, batch: UserBatch, updated_at: int | np.ndarray = 0) -> None:
        """Merge whole users in bulk; users of one batch may become visible at intervals.

        Events may be in any order and number: they are merged as `merge_histories` does, which costs nothing
        when they are merged already.  A user of whom nothing is said is left out.
        updated_at: when the attributes were said, ms since 1970; [U] or one for all.
        """

    async def put_authors(self, records: np.ndarray, updated_at: np.ndarray) -> None:
        """Merge records "author" [E], said at updated_at [E] ms; each author keeps its newest `author_lives` rooms."""

    async def apply(self, batch: EventBatch) -> Applied:
        """Merge events; users and authors that are not known come to be.  All or nothing in LMDB; in Redis each user
        is, so a batch that failed is to be applied again."""

    async def delete_user(self, user_id: int, erased_until: int) -> bool:
        """Erase all that is stored of a user; whatever is not newer than erased_until [ms since 1970] is dropped from
        then on.  Returns whether anything was stored."""

    async def users(self, limit: int) -> list[int]:
        """Ids of at most `limit` users."""

    def scan_users(self) -> AsyncIterator[list[tuple[int, UserRecord]]]:
        """All users, some at a time; what is written meanwhile may be in it or not.  Corrupt ones are left out."""

    def scan_authors(self) -> AsyncIterator[list[tuple[np.ndarray, np.ndarray]]]:
        """All authors, some at a time: records "author" of one author and when each was said [ms since 1970]."""

    def scan_erased(self) -> AsyncIterator[list[tuple[int, int]]]:
        """All tombstones, some at a time: user id and erased_until."""

    async def stats(self) -> StoreStats:
        """How much is stored."""

    async def close(self) -> None:
        """Finish writes under way and let go of the store."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_store(
    url: str, schema: RecordSchema | None = None, create: bool = False, settings: RedisSettings | None = None
) -> FeatureStore:
    """The store at a URL: ``lmdb:///absolute/path``, ``lmdb://relative/path``, ``redis://host:port`` and its kin.

    schema: what the store must hold; None takes what it holds (the default schema when it is created here).
    create: make the store when there is none.
    settings: of a Redis store; None takes them from the environment.
    Raises SchemaMismatch with the difference, StoreError for a URL that means nothing or a store that is not there,
    StoreUnreachable when its server does not answer.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in SCHEMES:
        raise StoreError(f"store {url!r}: unknown scheme; known are {', '.join(f'{name}://' for name in SCHEMES)}")
    if scheme in REDIS_SCHEMES:
        from feature_store.redis.store import RedisStore  # a backend's library is loaded only by who uses it

        return RedisStore(url, schema, create, settings)
    if not rest:
        raise StoreError(f"store {url!r}: the path is missing, as in lmdb:///absolute/path")
    from feature_store.lmdb_store import LmdbStore

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
