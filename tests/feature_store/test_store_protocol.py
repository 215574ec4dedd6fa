"""What every store does, told once and run against each backend: LMDB, one server, Sentinel, Cluster.

What is said of authors is read by a store opened after it, because an open one may know authors for a while.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import numpy as np
import pytest
from builders import BACKENDS, START_MS, OpenBackend, author_updates, user_updates, users_of_events, views

from feature_store.events.batch import EventBatch
from feature_store.ids import to_id64
from feature_store.records import TIME_LIMIT, UserBatch, UserRecord, records_from_columns
from feature_store.schema import MISSING, Domain, RecordSchema, StoredField, default_schema, widen
from feature_store.store import Applied, FeatureStore, SchemaMismatch, StoreAnswer, StoreError

Make = Callable[..., np.ndarray]
SMALL = default_schema().model_copy(update={"history_length": 3, "history_spare": 2, "author_lives": 2})
LEAST, GREATEST = -(2**63) + 1, 2**63 - 1

pytestmark = pytest.mark.parametrize("backend_url", BACKENDS, indirect=True)


def run(open_backend: OpenBackend, work: Callable[[FeatureStore], Awaitable[None]], schema: RecordSchema) -> None:
    """`work` with the store opened for it."""

    async def opened() -> None:
        async with open_backend(schema) as store:
            await work(store)

    asyncio.run(opened())


async def user_of(store: FeatureStore, user_id: int) -> UserRecord:
    answer = await store.read(user_id, ())
    assert not answer.corrupt
    assert answer.user is not None
    return answer.user


async def ids_of(store: FeatureStore, user_id: int, domain: Domain = "video") -> list[int]:
    """The views of a user's history, in its order."""
    user = (await store.read(user_id, ())).user
    return [] if user is None else user.history(domain)["view_id"].tolist()


def known_views(domain: Domain, users: Sequence[int], ids: Sequence[int], at: Sequence[int]) -> EventBatch:
    """Whole views of the small schema that start at `at` and are known 5 ms later."""
    return views(SMALL, domain, users, view_id=ids, event_time=at, known_after=[5] * len(ids))


def test_what_is_not_there_is_missing(open_backend: OpenBackend) -> None:
    async def work(store: FeatureStore) -> None:
        assert await store.read(1, [1, 2]) == StoreAnswer(None, {}, False)
        assert await store.read(LEAST, np.array([MISSING, GREATEST])) == StoreAnswer(None, {}, False)
        assert await store.users(10) == []
        assert [rows async for rows in store.scan_users() if rows] == []
        assert [rows async for rows in store.scan_authors() if rows] == []
        assert [rows async for rows in store.scan_erased() if rows] == []
        stats = await store.stats()
        assert (stats.users, stats.authors, stats.erased) == (0, 0, 0)

    run(open_backend, work, SMALL)


def test_what_is_put_is_read_bit_for_bit(schema: RecordSchema, make_events: Make, open_backend: OpenBackend) -> None:
    video, live = make_events("video", 100), make_events("live", 4, first=1000)

    async def write(store: FeatureStore) -> None:
        await store.put_users(users_of_events(schema, [-3, GREATEST], video, live), START_MS)
        await store.put_users(users_of_events(schema, [5], video[:1], live[:0], attributes=False))
        lives = {"author_id": [1, 2, 1], "live_id": [10, 20, 11], "tag": [5, 6, None]}
        await store.put_authors(records_from_columns(schema, "author", lives), np.array([1, 2, 3]))

    async def check(store: FeatureStore) -> None:
        assert store.schema == schema
        answer = await store.read(GREATEST, [1, 2, 3, 2])
        assert answer.user is not None
        assert not answer.corrupt
        assert answer.user.attributes is not None
        assert answer.user.attributes.tolist() == (GREATEST, 1)
        assert answer.user.attributes_at == START_MS
        np.testing.assert_array_equal(answer.user.video, video[50:])
        np.testing.assert_array_equal(answer.user.live, live[2:])
        assert {a: lives.tolist() for a, lives in answer.authors.items()} == {
            1: [(1, 11, -(2**15), -(2**15))],
            2: [(2, 20, 6, -(2**15))],
        }
        assert answer.authors[1].dtype == schema.dtype("author")
        told_nothing = await user_of(store, 5)
        assert (told_nothing.attributes, len(told_nothing.video), len(told_nothing.live)) == (None, 1, 0)

    run(open_backend, write, schema)
    run(open_backend, check, schema)


def test_nothing_is_nothing(open_backend: OpenBackend) -> None:
    nobody = UserBatch(
        np.array([1]),
        None,
        np.empty(0, SMALL.dtype("video")),
        np.zeros(2, np.int64),
        np.empty(0, SMALL.dtype("live")),
        np.zeros(2, np.int64),
    )

    async def work(store: FeatureStore) -> None:
        assert await store.apply(EventBatch.empty(SMALL)) == Applied(0, 0)
        await store.put_authors(np.empty(0, SMALL.dtype("author")), np.empty(0, np.int64))
        await store.put_users(nobody)  # a user of whom nothing is said is left out
        await store.put_users(nobody.part(0, 0))
        assert await store.users(1) == []
        assert (await store.read(1, ())).user is None

    run(open_backend, work, SMALL)


def test_acts_of_one_view_that_arrive_apart_are_one_event(open_backend: OpenBackend) -> None:
    def act(known_after: int | None, play_time: int | None, behaviours: int | None) -> EventBatch:
        columns = {"known_after": [known_after], "play_time": [play_time], "behaviours": [behaviours]}
        return views(SMALL, "live", [1], view_id=[9], event_time=[START_MS], **columns)

    async def work(store: FeatureStore) -> None:
        versions = []
        for part in (
            act(700, 600, 4),
            act(None, None, 1),
            act(None, 250, None),
            act(40_000, None, 8),
            act(700, 600, 4),
        ):
            assert await store.apply(part) == Applied(1, 0)
            versions.append((await user_of(store, 1)).version)
        (event,) = (await user_of(store, 1)).live[["view_id", "known_after", "play_time", "tag", "behaviours"]].tolist()
        assert event == (9, 40_000, 600, -(2**15), 13)
        assert versions == sorted(versions)
        assert versions[0] < versions[3]

    run(open_backend, work, SMALL)


def test_order_and_repetition_do_not_matter(open_backend: OpenBackend) -> None:
    parts = [known_views("video", [1, 2], [n, n], [n, 10 - n]) for n in range(1, 4)]

    async def work(store: FeatureStore) -> None:
        for part in (parts[2], parts[0], parts[2], parts[1], parts[0]):
            await store.apply(part)
        assert await ids_of(store, 1) == [1, 2, 3]
        assert await ids_of(store, 2) == [3, 2, 1]
        before = await user_of(store, 1)
        await store.apply(EventBatch.concat([*parts, *parts]))
        np.testing.assert_array_equal((await user_of(store, 1)).video, before.video)

    run(open_backend, work, SMALL)


def test_the_newest_views_stay(open_backend: OpenBackend) -> None:
    async def work(store: FeatureStore) -> None:
        await store.apply(known_views("video", [1] * 5, [5, 3, 1, 2, 4], [50, 30, 10, 20, 40]))
        assert await ids_of(store, 1) == [3, 4, 5]
        await store.apply(known_views("video", [1, 1], [6, 0], [60, 0]))
        assert await ids_of(store, 1) == [4, 5, 6]
        await store.apply(known_views("video", [1, 1], [8, 7], [60, 60]))  # of one time, by id
        assert await ids_of(store, 1) == [6, 7, 8]
        assert await ids_of(store, 1, "live") == []

    run(open_backend, work, SMALL)


def test_views_in_progress_displace_none_and_are_known_later(open_backend: OpenBackend) -> None:
    async def work(store: FeatureStore) -> None:
        await store.apply(known_views("video", [1, 1, 1], [1, 2, 3], [10, 20, 30]))
        going_on = views(SMALL, "video", [1, 1, 1], view_id=[6, 4, 5], event_time=[25, 15, 5])
        await store.apply(going_on)
        assert await ids_of(store, 1) == [1, 2, 3, 4, 6]
        await store.apply(known_views("video", [1], [4], [15]))
        assert await ids_of(store, 1) == [4, 2, 3, 6]
        await store.apply(going_on)  # late and again: what is known stays known
        assert await ids_of(store, 1) == [4, 2, 3, 5, 6]

    run(open_backend, work, SMALL)


def test_attributes_said_last_win(open_backend: OpenBackend) -> None:
    def say(at: int, group: int) -> EventBatch:
        return user_updates(SMALL, [at], user_id=[1], activity_group=[group])

    async def said(store: FeatureStore) -> tuple[int, int]:
        user = await user_of(store, 1)
        assert user.attributes is not None
        return int(user.attributes["activity_group"]), user.attributes_at

    async def work(store: FeatureStore) -> None:
        await store.apply(known_views("live", [1], [7], [70]))
        assert (await user_of(store, 1)).attributes is None
        await store.apply(say(200, 2))
        await store.apply(say(100, 3))
        assert await said(store) == (2, 200)
        await store.apply(EventBatch.concat([say(300, 1), say(300, 2), say(250, 3)]))
        assert await said(store) == (2, 300)
        await store.apply(say(300, 0))  # of one time, by bytes
        assert await said(store) == (2, 300)
        video, live = np.empty(0, SMALL.dtype("video")), np.empty(0, SMALL.dtype("live"))
        await store.put_users(users_of_events(SMALL, [1], video, live), 299)
        assert await said(store) == (2, 300)
        await store.put_users(users_of_events(SMALL, [1], video, live), np.array([301]))
        assert await said(store) == (1, 301)
        assert await ids_of(store, 1, "live") == [7]

    run(open_backend, work, SMALL)


def test_authors_keep_their_newest_rooms(open_backend: OpenBackend) -> None:
    def say(at: int, live: int | None, tag: int) -> EventBatch:
        return author_updates(SMALL, [at], author_id=[1], live_id=[live], tag=[tag])

    def rooms(expected: list[tuple[int, int]]) -> Callable[[FeatureStore], Awaitable[None]]:
        async def check(store: FeatureStore) -> None:
            lives = (await store.read(0, [1])).authors[1]
            assert list(zip(widen(lives["live_id"]).tolist(), lives["tag"].tolist(), strict=True)) == expected

        return check

    async def write(store: FeatureStore) -> None:
        for part in (say(10, 5, 1), say(30, 7, 1), say(20, 6, 1), say(20, 6, 9)):
            await store.apply(part)

    async def write_more(store: FeatureStore) -> None:
        await store.apply(EventBatch.concat([say(40, 5, 2), say(15, 7, 3), say(5, 8, 4)]))

    async def write_alike(store: FeatureStore) -> None:
        late = {"author_id": [1, 1], "live_id": [4, None], "tag": [6, 8]}
        await store.put_authors(records_from_columns(SMALL, "author", late), np.array([50, 50]))

    for work, expected in ((write, [(6, 9), (7, 1)]), (write_more, [(7, 1), (5, 2)])):
        run(open_backend, work, SMALL)
        run(open_backend, rooms(expected), SMALL)
    run(open_backend, write_alike, SMALL)
    run(open_backend, rooms([(MISSING, 8), (4, 6)]), SMALL)


def test_a_room_that_was_asked_for_is_never_behind(open_backend: OpenBackend) -> None:
    async def work(store: FeatureStore) -> None:
        await store.apply(author_updates(SMALL, [1], author_id=[1], live_id=[10], tag=[1]))
        assert (await store.read(0, [1], np.array([10]))).authors[1]["live_id"].tolist() == [10]
        await store.apply(author_updates(SMALL, [2], author_id=[1], live_id=[11], tag=[2]))
        answer = await store.read(0, np.array([1, 2]), np.array([11, MISSING]))
        assert answer.authors[1]["live_id"].tolist() == [10, 11]
        assert list(answer.authors) == [1]

    run(open_backend, work, SMALL)


def test_a_load_is_merged_with_what_is_there(open_backend: OpenBackend) -> None:
    live = np.empty(0, SMALL.dtype("live"))
    loaded = known_views("video", [0, 0], [1, 2], [10, 20]).video

    async def work(store: FeatureStore) -> None:
        await store.apply(known_views("video", [1, 1], [3, 2], [30, 20]))
        await store.put_users(users_of_events(SMALL, [1, 2], np.concatenate([loaded, loaded]), live))
        assert await ids_of(store, 1) == [1, 2, 3]
        assert await ids_of(store, 2) == [1, 2]
        await store.put_users(users_of_events(SMALL, [2, 3], np.concatenate([loaded, loaded]), live))
        assert [await ids_of(store, user) for user in (1, 2, 3)] == [[1, 2, 3], [1, 2], [1, 2]]
        assert sorted(await store.users(10)) == [1, 2, 3]

    run(open_backend, work, SMALL)


def test_who_is_erased_stays_erased(open_backend: OpenBackend) -> None:
    old = EventBatch.concat(
        [
            known_views("video", [1, 2], [1, 1], [90, 90]),
            known_views("live", [1, 2], [1, 1], [100, 100]),
            user_updates(SMALL, [100, 100], user_id=[1, 2], activity_group=[1, 1]),
        ]
    )
    loaded = users_of_events(SMALL, [1, 2], np.concatenate([old.video[:1]] * 2), np.concatenate([old.live[:1]] * 2))

    async def work(store: FeatureStore) -> None:
        assert await store.apply(old) == Applied(6, 0)
        assert await store.delete_user(1, 100)
        assert await store.read(1, ()) == StoreAnswer(None, {}, False)
        assert await store.users(10) == [2]
        assert await store.apply(EventBatch.concat([old, old])) == Applied(6, 6)  # late, or a replay
        await store.put_users(loaded, 100)  # a load, or a restore
        assert await store.read(1, ()) == StoreAnswer(None, {}, False)
        assert (await user_of(store, 2)).attributes is not None

    async def work_later(store: FeatureStore) -> None:
        new = EventBatch.concat([known_views("live", [1, 1], [2, 3], [101, 99]), old])
        assert await store.apply(new) == Applied(4, 4)
        user = await user_of(store, 1)
        assert (user.attributes, user.video.tolist(), user.live["view_id"].tolist()) == (None, [], [2])
        await store.put_users(loaded, 101)
        user = await user_of(store, 1)
        assert user.attributes is not None
        assert (user.video.tolist(), user.live["view_id"].tolist()) == ([], [2])

    run(open_backend, work, SMALL)
    run(open_backend, work_later, SMALL)


def test_an_erasure_takes_all_and_then_is_told_event_by_event(open_backend: OpenBackend) -> None:
    acts = views(SMALL, "video", [1, 1], view_id=[7, 7], event_time=[100, 101], behaviours=[1, 2])

    async def work(store: FeatureStore) -> None:
        await store.apply(known_views("video", [1], [1], [500]))
        assert await store.delete_user(1, 100)  # also what is newer, as a wrong clock may have made it
        assert (await store.read(1, ())).user is None
        assert not await store.delete_user(1, 100)
        assert await store.apply(acts) == Applied(1, 1)
        assert (await user_of(store, 1)).video[["event_time", "behaviours"]].tolist() == [(101, 2)]

    run(open_backend, work, SMALL)


def test_an_erasure_is_not_shortened_and_may_come_first(open_backend: OpenBackend) -> None:
    async def work(store: FeatureStore) -> None:
        assert not await store.delete_user(LEAST, 200)
        assert not await store.delete_user(LEAST, 100)
        assert await store.apply(known_views("video", [LEAST, LEAST], [1, 2], [200, 201])) == Applied(1, 1)
        assert await ids_of(store, LEAST) == [2]
        assert [row async for rows in store.scan_erased() for row in rows] == [(LEAST, 200)]
        assert (await store.stats()).erased == 1

    run(open_backend, work, SMALL)


def test_versions_grow_over_an_erasure(open_backend: OpenBackend) -> None:
    async def work(store: FeatureStore) -> None:
        await store.apply(known_views("video", [1], [1], [10]))
        before = (await user_of(store, 1)).version
        await store.delete_user(1, 100)
        await store.apply(known_views("video", [1], [1], [101]))
        assert (await user_of(store, 1)).version > before

    run(open_backend, work, SMALL)


def test_a_scan_sees_all(schema: RecordSchema, make_events: Make, open_backend: OpenBackend) -> None:
    count = 2300
    ids = [7919 * n - 10**6 for n in range(count)]

    async def work(store: FeatureStore) -> None:
        live = np.empty(0, schema.dtype("live"))
        await store.put_users(users_of_events(schema, ids, make_events("video", count), live), START_MS)
        rooms = {"author_id": np.repeat(ids, 2), "live_id": np.arange(2 * count)}
        await store.put_authors(records_from_columns(schema, "author", rooms), np.arange(2 * count))
        for user_id in ids[:3]:
            await store.delete_user(user_id, 2 * START_MS)
        seen = dict([row async for rows in store.scan_users() for row in rows])
        assert sorted(seen) == ids[3:]
        assert {user.attributes_at for user in seen.values()} == {START_MS}
        assert all(seen[ids[n]].video["view_id"].tolist() == [n] for n in range(3, count))
        found = [row async for rows in store.scan_authors() for row in rows]
        told = {int(lives["author_id"][0]): (lives["live_id"].tolist(), at.tolist()) for lives, at in found}
        assert told == {author: ([2 * n + 1], [2 * n + 1]) for n, author in enumerate(ids)}
        erased = [row async for rows in store.scan_erased() for row in rows]
        assert sorted(erased) == [(user_id, 2 * START_MS) for user_id in ids[:3]]
        stats = await store.stats()
        assert (stats.users, stats.authors, stats.erased) == (count - 3, count, 3)
        assert stats.size_bytes > 0
        assert stats.detail
        some = await store.users(5)
        assert len(some) == len(set(some)) == 5
        assert set(some) <= set(ids[3:])

    run(open_backend, work, schema)


def test_extreme_ids_and_times(open_backend: OpenBackend) -> None:
    ids = [LEAST, -(2**53) - 1, -1, 0, 2**53 + 1, GREATEST - 1, GREATEST]

    async def work(store: FeatureStore) -> None:
        for view in (ids[0], ids[4], ids[6]):
            times = [view % TIME_LIMIT] * len(ids)
            await store.apply(views(SMALL, "video", ids, view_id=[view] * len(ids), event_time=times, author_id=ids))
        near = [2**53, 2**53 + 1, 2**53 + 2, 2**53 + 3]  # alike to a double
        await store.apply(known_views("live", [GREATEST] * 4, near, [TIME_LIMIT] * 4))
        await store.apply(known_views("live", [GREATEST - 1] * 2, near[:2], [-TIME_LIMIT, TIME_LIMIT]))
        await store.apply(author_updates(SMALL, [TIME_LIMIT] * len(ids), author_id=ids, live_id=ids))

    async def check(store: FeatureStore) -> None:
        assert sorted(await store.users(100)) == ids
        for user_id in ids:
            user = await user_of(store, user_id)
            assert len(user.video) == 2
            assert set(user.video["author_id"].tolist()) == {user_id}
        assert await ids_of(store, GREATEST, "live") == [2**53 + 1, 2**53 + 2, 2**53 + 3]
        assert await ids_of(store, GREATEST - 1, "live") == [2**53, 2**53 + 1]
        authors = (await store.read(0, ids, np.array(ids))).authors
        assert {author: lives["live_id"].tolist() for author, lives in authors.items()} == {a: [a] for a in ids}

    run(open_backend, work, SMALL)
    run(open_backend, check, SMALL)


def test_string_ids(open_backend: OpenBackend) -> None:
    schema = SMALL.model_copy(update={"ids": "string"})
    user_id, view_id = to_id64("user-1", "string"), to_id64("view-1", "string")

    async def work(store: FeatureStore) -> None:
        await store.apply(views(schema, "video", [user_id], view_id=[view_id], event_time=[1]))

    async def check(store: FeatureStore) -> None:
        assert store.schema.ids == "string"
        assert await ids_of(store, user_id) == [view_id]

    run(open_backend, work, schema)
    run(open_backend, check, schema)
    with pytest.raises(SchemaMismatch, match="ids is string, asked integer"):
        run(open_backend, check, SMALL)


def test_another_schema_is_refused_with_the_difference(schema: RecordSchema, open_backend: OpenBackend) -> None:
    async def touch(store: FeatureStore) -> None:
        await store.users(1)

    run(open_backend, touch, schema)
    tag = StoredField(name="tag", dtype="i4")
    wider = tuple(tag if field.name == "tag" else field for field in schema.video)
    others: dict[str, dict[str, object]] = {
        "version is 1, asked 2": {"version": 2},
        "history_length is 50, asked 60": {"history_length": 60},
        "video.tag is i2, asked i4": {"video": wider},
        "author: fields are in another order": {"author": schema.author[::-1]},
    }
    for message, change in others.items():
        with pytest.raises(SchemaMismatch, match=message):
            run(open_backend, touch, RecordSchema.model_validate(schema.model_dump() | change))
    described = tuple(field.model_copy(update={"description": "new words"}) for field in schema.user)
    run(open_backend, touch, schema.model_copy(update={"user": described}))


def test_a_store_that_is_not_there_is_said(open_backend: OpenBackend) -> None:
    async def touch() -> None:
        async with open_backend(create=False) as store:
            await store.users(1)

    with pytest.raises(StoreError, match="farm materialize"):
        asyncio.run(touch())


def test_what_does_not_fit_is_refused(open_backend: OpenBackend) -> None:
    good = known_views("video", [1, 2], [1, 2], [1, 2])
    authors = author_updates(SMALL, [1], author_id=[1])
    users = user_updates(SMALL, [1], user_id=[1])
    empty = EventBatch.empty(SMALL)
    wrong = {
        "video: 1 user ids for 2 events": EventBatch(good.video_users[:1], good.video, *empty.columns()[2:]),
        "video: .* is not an array of": EventBatch(good.video_users, empty.live, *empty.columns()[2:]),
        "live: .* is not an array of": EventBatch(*good.columns()[:3], good.video, *empty.columns()[4:]),
        "user_ids: missing in row 0": EventBatch(np.full(2, MISSING), good.video, *empty.columns()[2:]),
        "author: updated_at": EventBatch(*empty.columns()[:4], authors.authors, empty.authors_at, *empty.columns()[6:]),
        "user: updated_at": EventBatch(*empty.columns()[:6], users.users, np.array([TIME_LIMIT + 1])),
    }

    async def work(store: FeatureStore) -> None:
        for message, batch in wrong.items():
            with pytest.raises(ValueError, match=message):
                await store.apply(batch)
        with pytest.raises(ValueError, match="author: "):
            await store.put_authors(good.video, np.array([1, 2]))
        with pytest.raises(ValueError, match="author: updated_at"):
            await store.put_authors(authors.authors, np.array([1, 2]))
        batch = users_of_events(SMALL, [1, 2], good.video, empty.live)
        with pytest.raises(ValueError, match="updated_at"):
            await store.put_users(batch, np.array([1]))
        with pytest.raises(ValueError, match="a user is named twice"):
            await store.put_users(users_of_events(SMALL, [1, 1], good.video, empty.live))
        with pytest.raises(ValueError, match="missing"):
            await store.delete_user(MISSING, 1)
        assert await store.users(1) == []

    run(open_backend, work, SMALL)
