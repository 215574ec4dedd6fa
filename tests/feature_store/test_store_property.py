"""Any interleaving, repetition and re-ordering of events over several workers gives what a plain reference says.

The reference is of dicts and Python's integers, and knows nothing of feature_store.merge.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterable
from contextlib import AsyncExitStack
from itertools import count
from random import Random
from typing import NamedTuple

import numpy as np
import pytest
from builders import OpenBackend, author_updates, user_updates, views
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_store.events.batch import EventBatch
from feature_store.schema import MISSING, Domain, RecordSchema, default_schema, widen
from feature_store.store import FeatureStore, StoreAnswer

WORKERS = 3
LARGE = default_schema().model_copy(update={"history_spare": 50, "author_lives": 2})  # truncates nothing drawn here
SMALL = default_schema().model_copy(update={"history_length": 3, "history_spare": 2, "author_lives": 2})
NAMESPACES = count()  # of ids: every example has users and authors of its own
EXAMPLES = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

pytestmark = pytest.mark.parametrize("backend_url", ["lmdb", "redis"], indirect=True)


class View(NamedTuple):
    """A record of a view, whole or partial; None where it says nothing."""

    user: int
    view: int
    start: int
    known_after: int | None
    play_time: int | None
    tag: int | None
    behaviours: int | None


class Said(NamedTuple):
    """The attributes of a user."""

    user: int
    at: int
    group: int


class Room(NamedTuple):
    """The attributes of an author's live room."""

    author: int
    at: int
    live: int
    tag: int


Event = View | Said | Room

user = st.integers(0, 1)
small = st.integers(0, 3)
time = st.integers(0, 6)
after = st.none() | small | st.just(2**31 - 1)
PARTIAL = st.builds(
    View, user, st.integers(-2, 5), time, after, st.none() | small, st.none() | small, st.none() | st.integers(0, 255)
)
ABOUT = st.builds(Said, user, time, st.integers(-3, 3)) | st.builds(Room, user, time, small, st.integers(-300, 300))


@st.composite
def whole_views(draw: st.DrawFn) -> list[Event]:
    """Of each view one record."""
    keys = draw(st.lists(st.tuples(user, st.integers(-2, 9)), unique=True, max_size=16))
    return [View(*key, draw(time), draw(after), draw(small), 1, draw(small)) for key in keys]


def largest(*values: int | None) -> int | None:
    return max((value for value in values if value is not None), default=None)


def known_at(view: View) -> int | None:
    return None if view.known_after is None else view.start + view.known_after


def join(a: View, b: View) -> View:
    start, known = min(a.start, b.start), largest(known_at(a), known_at(b))
    known_after = None if known is None else min(known - start, 2**31 - 1)
    bits = [view.behaviours for view in (a, b) if view.behaviours is not None]
    behaviours = (bits[0] | bits[-1]) if bits else None
    play_time, tag = largest(a.play_time, b.play_time), largest(a.tag, b.tag)
    return View(a.user, a.view, start, known_after, play_time, tag, behaviours)


def expected_history(events: Iterable[Event], of: int, schema: RecordSchema) -> list[View]:
    joined: dict[int, View] = {}
    for view in events:
        if isinstance(view, View) and view.user == of:
            joined[view.view] = join(joined.get(view.view, view), view)
    known = sorted((v for v in joined.values() if v.known_after is not None), key=lambda v: (known_at(v), v.view))
    going_on = sorted((v for v in joined.values() if v.known_after is None), key=lambda v: (v.start, v.view))
    return known[-schema.history_length :] + going_on[-schema.history_spare :]


def expected_attributes(events: Iterable[Event], of: int) -> tuple[int, int] | None:
    said = (event for event in events if isinstance(event, Said) and event.user == of)
    last = max(said, key=lambda one: (one.at, struct.pack("<b", one.group)), default=None)
    return None if last is None else (last.at, last.group)


def expected_rooms(events: Iterable[Event], of: int) -> list[tuple[int, int]]:
    """Live room and tag of the two newest."""
    rooms: dict[int, Room] = {}
    for room in events:
        if isinstance(room, Room) and room.author == of:
            best = rooms.get(room.live, room)
            rooms[room.live] = max(best, room, key=lambda one: (one.at, struct.pack("<h", one.tag)))
    return [(room.live, room.tag) for room in sorted(rooms.values(), key=lambda one: (one.at, one.live))[-2:]]


def batch_of(schema: RecordSchema, domain: Domain, events: list[Event], base: int) -> EventBatch:
    """Users and authors are numbered from `base`."""
    seen = [event for event in events if isinstance(event, View)]
    said = [event for event in events if isinstance(event, Said)]
    rooms = [event for event in events if isinstance(event, Room)]
    columns = {
        name: [getattr(view, field) for view in seen]
        for name, field in {"view_id": "view", "event_time": "start", "known_after": "known_after"}.items()
    } | {name: [getattr(view, name) for view in seen] for name in ("play_time", "tag", "behaviours")}
    groups = {"user_id": [base + one.user for one in said], "activity_group": [one.group for one in said]}
    lives = {"author_id": [base + r.author for r in rooms], "live_id": [r.live for r in rooms]}
    return EventBatch.concat(
        [
            views(schema, domain, [base + view.user for view in seen], **columns),
            user_updates(schema, [one.at for one in said], **groups),
            author_updates(schema, [room.at for room in rooms], **lives, tag=[room.tag for room in rooms]),
        ]
    )


def deliveries(events: list[Event], random: Random) -> list[list[list[Event]]]:
    """To each worker its batches: every event once or more, in any order."""
    delivered = events + random.choices(events, k=len(events) // 2) if events else []
    random.shuffle(delivered)
    shares: list[list[list[Event]]] = [[] for _ in range(WORKERS)]
    while delivered:
        size = random.randint(1, 5)
        random.choice(shares).append(delivered[:size])
        delivered = delivered[size:]
    return shares


class Delivery:
    """Events of one example to a store, and what it then holds."""

    def __init__(self, open_backend: OpenBackend, backend_url: str, schema: RecordSchema, domain: Domain) -> None:
        self._open, self._schema, self._domain = open_backend, schema, domain
        self._stores = 1 if backend_url.startswith("lmdb") else WORKERS  # a process opens a folder once
        self._base = 10 * next(NAMESPACES)

    async def deliver(self, shares: list[list[list[Event]]], erase_after: int | None = None) -> None:
        """Every worker a task.  erase_after: how many batches of the first worker go before user 0 is erased."""
        async with AsyncExitStack() as stack:
            stores = [await stack.enter_async_context(self._open(self._schema)) for _ in range(self._stores)]
            workers = [
                self._work(stores[number % len(stores)], share, erase_after if number == 0 else None)
                for number, share in enumerate(shares)
            ]
            await asyncio.gather(*workers)

    async def _work(self, store: FeatureStore, batches: list[list[Event]], erase_after: int | None) -> None:
        for number, events in enumerate([*batches, []]):
            if number == erase_after:
                await store.delete_user(self._base, 10)
            await store.apply(batch_of(self._schema, self._domain, events, self._base))

    async def read(self, number: int) -> StoreAnswer:
        """User `number` and the author of the same number, by a store that has cached nothing."""
        async with self._open(self._schema) as store:
            return await store.read(self._base + number, [self._base + number])

    def check(self, events: list[Event]) -> None:
        """Whether all users and authors are as the reference says."""
        for number in (0, 1):
            answer = asyncio.run(self.read(number))
            history = [] if answer.user is None else answer.user.history(self._domain)
            assert to_views(history, number) == expected_history(events, number, self._schema)
            told = None if answer.user is None or answer.user.attributes is None else answer.user
            group = None if told is None else (told.attributes_at, int(told.attributes["activity_group"]))
            assert group == expected_attributes(events, number)
            lives = answer.authors.get(self._base + number)
            rooms = [] if lives is None else lives[["live_id", "tag"]].tolist()
            assert rooms == expected_rooms(events, number)


def to_views(history: np.ndarray | list[View], number: int) -> list[View]:
    if not len(history):
        return []
    names = ("view_id", "event_time", "known_after", "play_time", "tag", "behaviours")
    columns = [widen(history[name]).tolist() for name in names]
    rows = zip(*columns, strict=True)
    return [View(number, *(None if value == MISSING else value for value in row)) for row in rows]


@EXAMPLES
@given(events=st.lists(PARTIAL | PARTIAL | ABOUT, max_size=24), random=st.randoms(use_true_random=False))
def test_partial_records_of_views(
    open_backend: OpenBackend, backend_url: str, events: list[Event], random: Random
) -> None:
    delivery = Delivery(open_backend, backend_url, LARGE, "live")
    asyncio.run(delivery.deliver(deliveries(events, random)))
    delivery.check(events)


@EXAMPLES
@given(seen=whole_views(), about=st.lists(ABOUT, max_size=8), random=st.randoms(use_true_random=False))
def test_whole_records_where_histories_are_truncated(
    open_backend: OpenBackend, backend_url: str, seen: list[Event], about: list[Event], random: Random
) -> None:
    delivery = Delivery(open_backend, backend_url, SMALL, "video")
    asyncio.run(delivery.deliver(deliveries(seen + about, random)))
    delivery.check(seen + about)


@EXAMPLES
@given(batches=st.lists(st.lists(PARTIAL, min_size=1, max_size=9), max_size=4))
def test_partial_records_where_histories_are_truncated_in_turn(
    open_backend: OpenBackend, backend_url: str, batches: list[list[Event]]
) -> None:
    """In one order of delivery even this has one result: what is truncated between batches is forgotten."""
    delivery = Delivery(open_backend, backend_url, SMALL, "live")
    asyncio.run(delivery.deliver([batches]))
    kept: list[Event] = []
    for batch in batches:
        kept = [view for user in (0, 1) for view in expected_history([*kept, *batch], user, SMALL)]
    delivery.check(kept)


@EXAMPLES
@given(events=st.lists(PARTIAL | ABOUT, max_size=24), random=st.randoms(use_true_random=False))
def test_an_erasure_in_between(
    open_backend: OpenBackend, backend_url: str, events: list[Event], random: Random
) -> None:
    delivery = Delivery(open_backend, backend_url, LARGE, "video")
    shares = deliveries(events, random)
    asyncio.run(delivery.deliver(shares, erase_after=random.randint(0, len(shares[0]))))
    assert asyncio.run(delivery.read(0)).user is None
    delivery.check([event for event in events if isinstance(event, Room) or event.user != 0])
