"""A backup holds everything, any backend restores it, and a damaged one restores nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from builders import BACKENDS, START_MS, OpenBackend, author_updates, users_of_events

from feature_store.backup import Contents, backup, restore
from feature_store.records import UserRecord
from feature_store.schema import RecordSchema
from feature_store.store import FeatureStore, StoreError, open_store

Make = Callable[..., np.ndarray]

ERASED_UNTIL = START_MS + 5_000


async def fill(store: FeatureStore, make_events: Make) -> None:
    """Users 1 and -5 with attributes and histories, user 7 with neither attributes nor live views, user 3 erased."""
    schema = store.schema
    batch = users_of_events(schema, [1, -5], make_events("video", 20), make_events("live", 6))
    await store.put_users(batch, START_MS + 3)
    await store.put_users(users_of_events(schema, [7], make_events("video", 2), make_events("live", 0), False))
    await store.put_users(users_of_events(schema, [3], make_events("video", 2), make_events("live", 0)))
    await store.delete_user(3, ERASED_UNTIL)
    authors = author_updates(schema, [11, 12], author_id=[50, 2**63 - 1], live_id=[5, 6], tag=[1, None])
    await store.apply(authors)


async def contents(store: FeatureStore) -> tuple[dict[int, UserRecord], dict[int, tuple[bytes, bytes]], dict[int, int]]:
    users = {user_id: user async for some in store.scan_users() for user_id, user in some}
    authors = [author async for some in store.scan_authors() for author in some]
    erased = {user_id: until async for some in store.scan_erased() for user_id, until in some}
    return users, {int(one[0]["author_id"][0]): (one[0].tobytes(), one[1].tobytes()) for one in authors}, erased


def as_bytes(user: UserRecord) -> tuple[object, ...]:
    attributes = None if user.attributes is None else user.attributes.tobytes()
    return attributes, user.attributes_at, user.video.tobytes(), user.live.tobytes()


@pytest.fixture
def file(make_events: Make, tmp_path: Path) -> Path:
    """A backup of an LMDB store."""

    async def make() -> None:
        async with open_store(f"lmdb://{tmp_path}/first", create=True) as store:
            await fill(store, make_events)
            assert await backup(store, tmp_path / "backup") == Contents(users=3, authors=2, erased=1)

    asyncio.run(make())
    return tmp_path / "backup"


@pytest.mark.parametrize("backend_url", BACKENDS, indirect=True)
def test_what_comes_back_is_what_was_there(
    open_backend: OpenBackend, make_events: Make, file: Path, tmp_path: Path
) -> None:
    """LMDB's backup restored into every backend; that backend's backup restored into LMDB."""

    async def run() -> None:
        async with open_store(f"lmdb://{tmp_path}/first") as first, open_backend() as second:
            assert await restore(second, file) == Contents(3, 2, 1)
            await backup(second, tmp_path / "again")
            async with open_store(f"lmdb://{tmp_path}/third", create=True) as third:
                await restore(third, tmp_path / "again")
                expected, *rest = await contents(first)
                for store in (second, third):
                    users, *others = await contents(store)
                    assert {u: as_bytes(user) for u, user in users.items()} == {
                        u: as_bytes(user) for u, user in expected.items()
                    }
                    assert others == rest
                    assert others[1] == {3: ERASED_UNTIL}

    asyncio.run(run())


def test_who_was_erased_stays_so(file: Path, make_events: Make, tmp_path: Path) -> None:
    """Restoring an older backup, in which user 1 still is, into a store in which they were erased."""

    async def run() -> None:
        async with open_store(f"lmdb://{tmp_path}/first") as store:
            await store.delete_user(1, START_MS + 1_000_000)
            await restore(store, file)
            assert (await store.read(1, [])).user is None
            assert (await store.read(-5, [])).user is not None

    asyncio.run(run())


def test_only_its_owner_may_read_it(file: Path) -> None:
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_backup_is_never_overwritten(file: Path, tmp_path: Path) -> None:
    before = file.read_bytes()

    async def run() -> None:
        async with open_store(f"lmdb://{tmp_path}/first") as store:
            await backup(store, file)

    with pytest.raises(FileExistsError, match="never overwritten"):
        asyncio.run(run())
    assert file.read_bytes() == before


def damaged(content: bytes) -> dict[str, tuple[bytes, str]]:
    turned = bytearray(content)
    turned[len(content) // 2] ^= 1
    return {
        "a bit turned": (bytes(turned), "damaged at byte"),
        "cut in a frame": (content[: len(content) // 2], "damaged at byte|breaks off"),
        "no end": (content[: content.rindex(b"Z")], "not finished"),
        "something behind": (content + content[content.rindex(b"Z") :], "more after its end"),
        "another file": (b"PK" + content, "not a backup"),
        "empty": (b"", "not a backup"),
    }


@pytest.mark.parametrize("how", list(damaged(b"Z" * 64)))
def test_a_damaged_backup_restores_nothing(file: Path, tmp_path: Path, how: str) -> None:
    content, said = damaged(file.read_bytes())[how]
    file.write_bytes(content)

    async def run() -> None:
        async with open_store(f"lmdb://{tmp_path}/second", create=True) as store:
            with pytest.raises(StoreError, match=said):
                await restore(store, file)
            assert (await store.stats()).users == 0

    asyncio.run(run())


def test_another_schema_is_refused_with_the_difference(file: Path, schema: RecordSchema, tmp_path: Path) -> None:
    other = schema.model_copy(update={"history_length": 20})

    async def run() -> None:
        async with open_store(f"lmdb://{tmp_path}/second", other, create=True) as store:
            await restore(store, file)

    with pytest.raises(StoreError, match="history_length is 20, asked 50"):
        asyncio.run(run())
