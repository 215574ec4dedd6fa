"""What is known of the session's store."""

from __future__ import annotations

from dataclasses import dataclass

from feature_store.records import known_at
from feature_store.store import open_store


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
