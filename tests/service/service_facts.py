"""What is known of the session's store, and empty stores like it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from fastapi.testclient import TestClient

from feature_store.records import known_at
from feature_store.store import open_store
from service.runtime import Runtime

Client = Callable[..., AbstractContextManager[tuple[TestClient, Runtime]]]
"""The fixture `opened`: the application in this process over these settings, and its runtime."""


@dataclass(frozen=True)
class Facts:
    """Ids that the store holds, and a time at which their histories are known."""

    users: list[int]  # with a history at now_ms
    authors: list[int]
    now_ms: int


async def gather_facts(store_url: str, now_ms: int) -> Facts:
    users, authors = [], set()
    async with open_store(store_url) as store:
        for user_id in await store.users(200):
            user = (await store.read(user_id, [])).user
            if user is None or not (known_at(user.live) <= now_ms).any():
                continue
            users.append(user_id)
            authors.update(user.live["author_id"].tolist())
        known = (await store.read(users[0], sorted(authors))).authors
    return Facts(users, sorted(known), now_ms)


async def make_empty_store(store_url: str, url: str, **changes: object) -> None:
    """A store at `url` with the schema of the one at `store_url`, but for these changes."""
    async with open_store(store_url) as source:
        schema = source.schema.model_copy(update=changes)
    async with open_store(url, schema, create=True):
        pass
