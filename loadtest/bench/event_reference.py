"""What a store must hold after events were sent: a plain reference in dicts, and what differs from it.

A fact is what is known of a view, a user's attributes or an author's live room: field by field, without what is not
known.  Facts of one key join, so "lost" and "doubled" are told by joining once more: what is in a fact changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from feature_store.records import UserRecord
from feature_store.schema import DOMAINS, Domain, RecordSchema
from feature_store.store import FeatureStore
from loadtest.bench.event_traffic import Event

Key = tuple[str, int, int]
"""Record of the schema, user or author, view or live room (0 for a user's attributes)."""

Fact = dict[str, int]
Facts = dict[Key, Fact]
StoredFacts = list[tuple[Key, Fact]]

_RECORDS = {"video_view": "video", "live_view": "live", "author": "author", "user": "user"}
_EXAMPLES = 5


@dataclass(frozen=True)
class Verdict:
    """Numbers of events, but for `doubled`, which counts facts of the store."""

    sent: int
    acknowledged: int
    applied: int  # sent, and in the store
    lost: int  # acknowledged, and not in the store
    doubled: int  # stored twice, or with more than was sent
    examples: tuple[str, ...]  # of lost and doubled


def join(kind: str, one: Fact, other: Fact) -> Fact:
    """What both say.  Views: the earliest begin, every act, the greatest of all else.  Else: what was said last."""
    if kind not in DOMAINS:
        return max(one, other, key=lambda fact: fact["updated_at"])
    joined = {name: max(fact[name] for fact in (one, other) if name in fact) for name in one | other}
    joined["event_time"] = min(one["event_time"], other["event_time"])
    if "behaviours" in joined:
        joined["behaviours"] = one.get("behaviours", 0) | other.get("behaviours", 0)
    return joined


def event_fact(event: Event, behaviours: tuple[str, ...]) -> tuple[Key, Fact]:
    """behaviours: of the schema, by bit."""
    kind = _RECORDS[event["type"]]
    named = {"video": ("user_id", "view_id"), "live": ("user_id", "view_id"), "author": ("author_id", "live_id")}
    ids = named.get(kind, ("user_id",))
    fact = {name: value for name, value in event.items() if name != "type" and name not in ids and value is not None}
    if "behaviours" in fact:
        fact["behaviours"] = sum(1 << behaviours.index(name) for name in fact["behaviours"])
    return (kind, event[ids[0]], event[ids[1]] if len(ids) > 1 else 0), fact


async def stored_facts(store: FeatureStore) -> StoredFacts:
    """All that a store holds; a key twice when it is stored twice."""
    found: StoredFacts = []
    schema = store.schema
    async for users in store.scan_users():
        for user_id, user in users:
            for domain in DOMAINS:
                found += [((domain, user_id, fact.pop("view_id")), fact) for fact in _views(schema, domain, user)]
            if user.attributes is not None:
                (fact,) = _facts(schema, "user", np.atleast_1d(user.attributes))
                del fact["user_id"]
                found.append((("user", user_id, 0), fact | {"updated_at": user.attributes_at}))
    async for authors in store.scan_authors():
        for lives, times in authors:
            for fact, at in zip(_facts(schema, "author", lives), times.tolist(), strict=True):
                key = ("author", fact.pop("author_id"), fact.pop("live_id", 0))
                found.append((key, fact | {"updated_at": at}))
    return found


def judge(
    events: Iterable[tuple[Event, bool]], behaviours: tuple[str, ...], before: Facts, stored: StoredFacts
) -> Verdict:
    """events: all that were sent, and whether they were acknowledged;  before: what the store held."""
    facts = [(*event_fact(event, behaviours), acknowledged) for event, acknowledged in events]
    most = dict(before)
    for key, fact, _ in facts:
        most[key] = join(key[0], most[key], fact) if key in most else fact
    held = dict(stored)
    there = [key in held and join(key[0], held[key], fact) == held[key] for key, fact, _ in facts]
    lost = [key for (key, _, acknowledged), applied in zip(facts, there, strict=True) if acknowledged and not applied]
    doubled = [key for key, count in Counter(key for key, _ in stored).items() for _ in range(count - 1)]
    doubled += [key for key, fact in stored if key not in most or join(key[0], most[key], fact) != most[key]]
    examples = [f"lost: {key}" for key in lost[:_EXAMPLES]] + [f"doubled: {key}" for key in doubled[:_EXAMPLES]]
    acknowledged = sum(said for _, _, said in facts)
    return Verdict(len(facts), acknowledged, sum(there), len(lost), len(doubled), tuple(examples))


def _views(schema: RecordSchema, domain: Domain, user: UserRecord) -> Iterator[Fact]:
    for fact in _facts(schema, domain, user.history(domain)):
        after = fact.pop("known_after", None)
        yield fact if after is None else fact | {"known_at": fact["event_time"] + after}


def _facts(schema: RecordSchema, record: str, records: np.ndarray) -> Iterator[Fact]:
    """Each record without what is missing."""
    fields = [(field.name, field.bounds[0]) for field in schema.fields(record)]
    for row in records.tolist():
        yield {name: value for (name, least), value in zip(fields, row, strict=True) if value >= least}
