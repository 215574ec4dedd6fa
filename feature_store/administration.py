"""What `farm store` does: look at what is stored, back it up, restore it, erase a user."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from feature_store import backup as files
from feature_store.events.log import EventLog
from feature_store.events.parse import FUTURE_LIMIT_MS
from feature_store.ids import to_id64
from feature_store.records import known_at
from feature_store.schema import DOMAINS, MISSING, RecordSchema, widen
from feature_store.store import StoreError, open_store

Json = dict[str, Any]


@dataclass(frozen=True)
class Erased:
    """What an erasure found."""

    known: bool  # the store held the user
    dead_letters: int  # removed


async def stats(url: str) -> Json:
    """How much the store at `url` holds, and, with a log, how far its workers are."""
    async with open_store(url) as store:
        told = asdict(await store.stats())
        if (log := EventLog.of(store)) is not None:
            told["log"] = await log.stats()
        return told


async def user_as_json(url: str, user: str) -> Json:
    """What is stored of one user, oldest event first.  StoreError when nothing is."""
    async with open_store(url) as store:
        user_id = to_id64(user, store.schema.ids)
        answer = await store.read(user_id, [])
        if answer.corrupt:
            raise StoreError(f"user {user}: the stored record is damaged (the log of this command says how)")
        if answer.user is None:
            raise StoreError(f"user {user}: nothing is stored")
        record = answer.user
        attributes = None
        if record.attributes is not None:
            attributes = _as_json(store.schema, "user", np.atleast_1d(record.attributes))[0]
            attributes["updated_at"] = record.attributes_at
        found: Json = {"user_id": user_id, "version": record.version, "attributes": attributes}
        return found | {domain: _events_as_json(store.schema, domain, record.history(domain)) for domain in DOMAINS}


async def author_as_json(url: str, author: str) -> Json:
    """What is stored of one author, newest live room last.  StoreError when nothing is."""
    async with open_store(url) as store:
        author_id = to_id64(author, store.schema.ids)
        answer = await store.read(MISSING, [author_id])
        if author_id not in answer.authors:
            raise StoreError(f"author {author}: nothing is stored")
        return {"author_id": author_id, "lives": _as_json(store.schema, "author", answer.authors[author_id])}


async def erase(url: str, user: str) -> Erased:
    """Erase a user: histories, attributes and dead letters go, and a tombstone drops what is still on its way."""
    async with open_store(url) as store:
        user_id = to_id64(user, store.schema.ids)
        known = await store.delete_user(user_id, int(1000 * time.time()) + FUTURE_LIMIT_MS)
        log = EventLog.of(store)
        return Erased(known, 0 if log is None else await log.dead_letters.erase_user(user_id))


async def backup(url: str, out: Path, progress: Callable[[str], None]) -> files.Contents:
    """Write all that the store at `url` holds to a new file."""
    async with open_store(url) as store:
        return await files.backup(store, out, progress)


async def restore(url: str, source: Path, progress: Callable[[str], None]) -> files.Contents:
    """Merge a backup into the store at `url`, which is made when there is none."""
    schema, _ = files.inspect(source)
    async with open_store(url, schema, create=True) as store:
        return await files.restore(store, source, progress)


def _events_as_json(schema: RecordSchema, domain: str, events: np.ndarray) -> list[Json]:
    rows = _as_json(schema, domain, events)
    for row, known in zip(rows, known_at(events).tolist(), strict=True):
        del row["known_after"]
        row["known_at"] = None if known == MISSING else known
        if row.get("behaviours") is not None:
            row["behaviours"] = [name for bit, name in enumerate(schema.behaviours) if row["behaviours"] >> bit & 1]
    return rows


def _as_json(schema: RecordSchema, record: str, records: np.ndarray) -> list[Json]:
    """Records by field; null where a value is missing."""
    columns = {field.name: widen(records[field.name]).tolist() for field in schema.fields(record)}
    return [
        {name: None if value == MISSING else value for name, value in zip(columns, row, strict=True)}
        for row in zip(*columns.values(), strict=True)
    ]
