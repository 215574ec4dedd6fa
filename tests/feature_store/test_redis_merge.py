"""The functions in the server against merge.py, byte for byte, in a real server."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import redis

from feature_store.merge import merge_histories
from feature_store.redis.functions import merge_library
from feature_store.schema import MISSING, RecordSchema, StoredField, default_schema
from loadtest.redis_servers import valkey

TIME_LIMIT = 2**52 - 1
DTYPES = ("i1", "i2", "i4", "i8")
EXTRAS = tuple(StoredField(name=f"x_{dtype}", dtype=dtype) for dtype in DTYPES)


def schema_of(behaviours: str, known_after: str, author_lives: int = 1) -> RecordSchema:
    """Few kept events, extra fields of every dtype, and keys that are not the first fields."""
    common = (
        *EXTRAS[:2],
        StoredField(name="event_time", dtype="i8"),
        StoredField(name="behaviours", dtype=behaviours),
        StoredField(name="view_id", dtype="i8"),
    )
    video = (*common, StoredField(name="known_after", dtype=known_after), *EXTRAS[2:])
    live = (StoredField(name="known_after", dtype="i2"), *common)
    author = (EXTRAS[0], StoredField(name="author_id", dtype="i8"), StoredField(name="live_id", dtype="i8"), EXTRAS[3])
    update = {"video": video, "live": live, "author": author, "author_lives": author_lives}
    return default_schema().model_copy(update={**update, "history_length": 5, "history_spare": 2})


@pytest.fixture(scope="module")
def server() -> Iterator[redis.Redis]:
    with valkey() as started, redis.Redis(port=started.port) as client:
        yield client


@pytest.fixture(autouse=True)
def _empty(server: redis.Redis) -> None:
    server.flushall()


def extreme(rng: np.random.Generator, dtype: np.dtype, count: int) -> np.ndarray:
    """Small values, missing, and the ends of the dtype with their neighbours, where doubles are not exact."""
    limits = np.iinfo(dtype)
    ends = [limits.min, limits.min + 1, limits.min + 2, limits.max - 2, limits.max - 1, limits.max]
    return rng.choice(np.array([*ends, -1, 0, 1, 2], dtype), count)


def random_times(rng: np.random.Generator, count: int) -> np.ndarray:
    ends = [-TIME_LIMIT, -TIME_LIMIT + 1, TIME_LIMIT - 1, TIME_LIMIT]
    return rng.choice(np.array([*ends, *range(-2, 9), 1_700_000_000_001]), count)


def random_events(rng: np.random.Generator, schema: RecordSchema, domain: str, count: int) -> np.ndarray:
    events = np.empty(count, schema.dtype(domain))
    for name in events.dtype.names or ():
        events[name] = extreme(rng, events.dtype[name], count)
    views = [-(2**63) + 1, 2**63 - 2, 2**63 - 1, 2**53, 2**53 + 1, -(2**53) - 1, 0, 1, 256, 65_536]
    events["view_id"] = rng.choice(np.array(views), count)
    events["event_time"] = random_times(rng, count)
    most = min(int(np.iinfo(events.dtype["known_after"]).max), TIME_LIMIT)
    after = rng.choice(np.array([0, 1, 2, most - 1, most]), count)
    least = np.iinfo(events.dtype["known_after"]).min
    events["known_after"] = np.where(rng.random(count) < 0.4, least, after)
    missing = np.iinfo(events.dtype["behaviours"]).min
    bits = rng.choice(np.array([0, 1, 2, 64, np.iinfo(events.dtype["behaviours"]).max & (2**31 - 1)]), count)
    events["behaviours"] = np.where(rng.random(count) < 0.3, missing, bits)
    return events


def joined(schema: RecordSchema, domain: str, events: np.ndarray) -> np.ndarray:
    """As events are sent: each view once, in order, none cut off."""
    return merged(schema.model_copy(update={"history_length": 10_000, "history_spare": 10_000}), domain, events)


def merged(schema: RecordSchema, domain: str, events: np.ndarray) -> np.ndarray:
    return merge_histories(schema, domain, events, np.zeros(len(events), np.int64), 1)[0]


def load(server: redis.Redis, schema: RecordSchema) -> tuple[str, str, str]:
    library = merge_library(schema)
    server.function_load(library.text, replace=True)
    return library.user, library.author, library.erase


@pytest.mark.parametrize(("behaviours", "known_after"), [("i1", "i4"), ("i2", "i8"), ("i4", "i1"), ("i8", "i2")])
def test_histories_equal_the_merge_in_python(server: redis.Redis, behaviours: str, known_after: str) -> None:
    schema = schema_of(behaviours, known_after)
    user, _, _ = load(server, schema)
    for seed in range(150):
        rng = np.random.default_rng(seed)
        video, live = (np.empty(0, schema.dtype(domain)) for domain in ("video", "live"))
        for _ in range(6):
            new_video = joined(schema, "video", random_events(rng, schema, "video", rng.integers(0, 8)))
            new_live = joined(schema, "live", random_events(rng, schema, "live", rng.integers(0, 3)))
            server.fcall(user, 2, f"u:{{{seed}}}", f"x:{{{seed}}}", new_video.tobytes(), new_live.tobytes(), b"", 0)
            video = merged(schema, "video", np.concatenate([video, new_video]))
            live = merged(schema, "live", np.concatenate([new_live, live]))
            stored = server.hmget(f"u:{{{seed}}}", "v", "l")
            assert [value or b"" for value in stored] == [video.tobytes(), live.tobytes()], seed


def test_full_histories_of_the_default_schema(server: redis.Redis) -> None:
    schema = default_schema()
    user, _, _ = load(server, schema)
    rng = np.random.default_rng(1)
    history = np.empty(0, schema.dtype("video"))
    for _ in range(60):
        new = np.zeros(rng.integers(1, 12), schema.dtype("video"))
        new["view_id"] = rng.integers(0, 400, len(new))
        new["event_time"] = 1_700_000_000_000 + rng.integers(0, 300, len(new))
        new["known_after"] = np.where(rng.random(len(new)) < 0.2, -(2**31), 30)
        new = joined(schema, "video", new)
        server.fcall(user, 2, "u:{1}", "x:{1}", new.tobytes(), b"", b"", 0)
        history = merged(schema, "video", np.concatenate([history, new]))
        assert server.hget("u:{1}", "v") == history.tobytes()
    assert len(history) == schema.history_length + schema.history_spare


def test_attributes_of_the_greater_time_and_bytes_stay(server: redis.Redis) -> None:
    user, _, _ = load(server, default_schema())
    said = [
        (5, b"b" * 9),
        (4, b"z" * 9),
        (5, b"a" * 9),
        (-(2**52) + 1, b"c" * 9),
        (5, b"b" * 8 + b"\xff"),
        (6, b"a" * 9),
    ]
    stays = [0, 0, 0, 0, 4, 5]
    for (time, own), best in zip(said, stays, strict=True):
        server.fcall(user, 2, "u:{1}", "x:{1}", b"", b"", time.to_bytes(8, "little", signed=True) + own, 0)
        time, own = said[best]
        assert server.hget("u:{1}", "a") == time.to_bytes(8, "little", signed=True) + own


def test_versions_grow_even_when_the_user_was_away(server: redis.Redis) -> None:
    user, _, _ = load(server, default_schema())
    versions = []
    for _ in range(3):
        versions += [server.fcall(user, 2, "u:{1}", "x:{1}", b"", b"", b"", 0) for _ in range(3)]
        assert int(server.hget("u:{1}", "n") or 0) == versions[-1]
        server.delete("u:{1}")
    assert versions == sorted(set(versions))
    assert versions[-1] > 2**40


def test_time_to_live_starts_anew_at_each_write(server: redis.Redis) -> None:
    user, _, _ = load(server, default_schema())
    server.fcall(user, 2, "u:{1}", "x:{1}", b"", b"", b"", 0)
    assert server.pttl("u:{1}") == -1
    for ttl_ms in (50_000, 90_000):
        server.fcall(user, 2, "u:{1}", "x:{1}", b"", b"", b"", ttl_ms)
        assert ttl_ms - 5000 < server.pttl("u:{1}") <= ttl_ms


def test_of_the_erased_only_what_is_newer_is_written(server: redis.Redis) -> None:
    schema = default_schema()
    user, _, erase = load(server, schema)
    events = np.zeros(3, schema.dtype("live"))
    events["view_id"], events["event_time"] = [1, 2, 3], [99, 100, 101]
    sent, size = events.tobytes(), events.itemsize
    old, new = (time.to_bytes(8, "little") + bytes(9) for time in (100, 101))
    server.fcall(user, 2, "u:{1}", "x:{1}", b"", sent, old, 0)
    assert server.fcall(erase, 3, "x:{1}", "u:{1}", "v:{1}", 100, 60_000) == 1
    assert server.exists("u:{1}") == 0
    assert 0 < server.pttl("x:{1}") <= 60_000
    for parts in ((b"", sent, b""), (sent[: 38 * 2], b"", new), (b"", sent[size:], new), (b"", sent[2 * size :], old)):
        assert server.fcall(user, 2, "u:{1}", "x:{1}", *parts, 0) == b"100"
        assert server.exists("u:{1}") == 0
    assert server.fcall(user, 2, "u:{1}", "x:{1}", b"", sent[2 * size :], new, 0) > 2**40
    assert server.hmget("u:{1}", "v", "l", "a") == [None, sent[2 * size :], new]


def test_a_tombstone_only_moves_on(server: redis.Redis) -> None:
    _, _, erase = load(server, default_schema())
    for until, stays in ((100, 100), (50, 100), (1_700_000_000_000, 1_700_000_000_000)):
        server.fcall(erase, 2, "x:{1}", "u:{1}", until, 0)
        assert int(server.get("x:{1}") or 0) == stays
    assert server.pttl("x:{1}") == -1


def test_histories_that_are_no_whole_records_start_anew(server: redis.Redis) -> None:
    schema = default_schema()
    user, _, _ = load(server, schema)
    event = np.zeros(1, schema.dtype("video")).tobytes()
    server.hset("u:{1}", mapping={"v": b"x" * 39, "l": b"y", "a": b"z", "n": "none"})
    server.fcall(user, 2, "u:{1}", "x:{1}", event, b"", bytes(17), 0)
    assert server.hmget("u:{1}", "v", "a") == [event, bytes(17)]
    assert int(server.hget("u:{1}", "n") or 0) > 2**40


@pytest.mark.parametrize("author_lives", [1, 3])
def test_authors_equal_a_plain_reference(server: redis.Redis, author_lives: int) -> None:
    schema = schema_of("i2", "i4", author_lives)
    _, author, _ = load(server, schema)
    entry = np.dtype([("updated_at", "<i8"), ("record", schema.dtype("author"))])
    for seed in range(150):
        rng = np.random.default_rng(seed)
        rooms: dict[int, np.void] = {}
        for _ in range(5):
            sent = random_rooms(rng, entry, rng.integers(1, 5))
            server.fcall(author, 1, f"a:{seed}", sent.tobytes())
            for room in sent:
                live = int(room["record"]["live_id"])
                rooms[live] = max(rooms.get(live, room), room, key=lambda one: (int(one[0]), one.tobytes()[8:]))
            kept = sorted(rooms.items(), key=lambda item: (int(item[1][0]), item[0]))[-author_lives:]
            rooms = dict(kept)
            assert server.get(f"a:{seed}") == b"".join(room.tobytes() for room in rooms.values()), seed


def random_rooms(rng: np.random.Generator, entry: np.dtype, count: int) -> np.ndarray:
    """Each room once, ascending by (updated_at, live_id)."""
    rooms = np.empty(count, entry)
    rooms["updated_at"] = random_times(rng, count)
    for name in entry["record"].names or ():
        rooms["record"][name] = extreme(rng, entry["record"][name], count)
    lives = np.array([MISSING, -1, 0, 1, 2**63 - 1, 2**63 - 2, 2**53 + 1, 2**53])
    rooms["record"]["live_id"] = rng.choice(lives, count, replace=False)
    return rooms[np.lexsort((rooms["record"]["live_id"], rooms["updated_at"]))]


def test_libraries_of_two_schemas_stand_side_by_side(server: redis.Redis) -> None:
    names = [load(server, schema)[0] for schema in (default_schema(), schema_of("i2", "i4"), default_schema())]
    assert names[0] == names[2] != names[1]
    for name in names:
        assert server.fcall(name, 2, "u:{1}", "x:{1}", b"", b"", b"", 0) > 2**40
