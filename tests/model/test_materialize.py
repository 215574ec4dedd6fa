"""What the store serves is what training gathered: the same raw integers for the same user at the same moment."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest

from feature_store.matrices import UserInputs, candidate_matrix, user_inputs
from feature_store.schema import DOMAINS, MISSING
from feature_store.store import StoreAnswer, open_store
from loadtest.redis_servers import valkey
from model.datasets.prepared import Prepared, history_ends
from model.datasets.samples import gather
from model.materialize import Options, materialize


class KilledError(Exception):
    """What stops a load in the middle."""


@pytest.fixture(scope="module")
def redis_server() -> Iterator[str]:
    with valkey() as server:
        yield server.url


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """A namespace of its own."""
    return f"{redis_server}?namespace=t{uuid4().hex[:16]}"


def read(url: str, users: list[int], authors: list[list[int]]) -> list[StoreAnswer]:
    async def read_all() -> list[StoreAnswer]:
        async with open_store(url) as store:
            return [await store.read(user, wanted) for user, wanted in zip(users, authors, strict=True)]

    return asyncio.run(read_all())


def served(data: Prepared, url: str, rows: np.ndarray) -> tuple[list[UserInputs], np.ndarray]:
    """User inputs and candidates of samples `rows`, built from the store as the service does."""
    samples = data.samples
    users = data.user_ids()[samples["user_row"][rows]].tolist()
    authors, lives = samples["author_id"][rows].astype(np.int64), samples["live_id"][rows].astype(np.int64)
    inputs, candidates = [], []
    for index, answer in enumerate(read(url, users, authors[:, None].tolist())):
        now, context = int(samples["request_time"][rows[index]]), {"page": int(samples["page"][rows[index]])}
        inputs.append(user_inputs(data.view, answer.user, users[index], context, now))
        one = slice(index, index + 1)
        matrix, unknown = candidate_matrix(data.view, authors[one], lives[one], answer.authors)
        assert not unknown.any()
        candidates.append(matrix[0])
    return inputs, np.array(candidates)


def assert_same_inputs(data: Prepared, url: str, rows: np.ndarray) -> None:
    batch = gather(data, rows)
    inputs, _ = served(data, url, rows)
    for name, values in batch.users.feeds().items():
        assert np.array_equal(values[batch.request], np.concatenate([getattr(one, name) for one in inputs])), name


def with_falling_room_ids(data: Prepared, folder: Path) -> Prepared:
    """The same data in a folder of its own, with other ids of rooms; they lie by author and id, as prepare has it."""
    shutil.copytree(data.path, folder)
    np.save(folder / "samples/live_id.npy", 10**12 - np.asarray(data.samples["live_id"]))
    authors = dict(data.authors) | {"live_id": 10**12 - np.asarray(data.authors["live_id"])}
    order = np.lexsort((authors["live_id"], authors["author_id"]))
    for name, column in authors.items():
        np.save(folder / f"authors/{name}.npy", np.asarray(column)[order])
    return Prepared.open(folder)


def at_the_end(data: Prepared) -> Prepared:
    """One sample per user, a minute after everything is known."""
    users = len(data.user_ids())
    last = max(int(events.known_at().max()) for events in data.events.values())
    samples = {name: np.array(column[:users]) for name, column in data.samples.items()}
    samples |= {"user_row": np.arange(users), "request_time": np.full(users, last + 60_000)}
    for domain in DOMAINS:
        ends = history_ends(data.events[domain], samples["user_row"], samples["request_time"])
        samples[f"{domain}_end"] = ends
    return replace(data, samples=samples)


def last_samples(data: Prepared) -> np.ndarray:
    """The last sample of each user that has one."""
    rows = np.argsort(data.samples["request_time"], kind="stable")
    return np.array(sorted({int(data.samples["user_row"][row]): int(row) for row in rows}.values()))


def test_served_right_after_materialize(prepared: Prepared, store_url: str) -> None:
    """Every user, at a moment when all that was prepared is known."""
    data = at_the_end(prepared)
    lengths = np.diff(data.events["video"].offsets)
    assert lengths.max() > 50 > lengths.min()  # both kinds of history are among them
    assert_same_inputs(data, store_url, np.arange(len(lengths)))


def test_served_at_the_last_sample(prepared: Prepared, store_url: str) -> None:
    """Users whose whole history the store keeps: no event of after the request has displaced one."""
    rows = last_samples(prepared)
    kept = np.ones(len(rows), bool)
    for domain in DOMAINS:
        user_rows = prepared.samples["user_row"][rows]
        offsets = prepared.events[domain].offsets
        kept &= offsets[user_rows + 1] - offsets[user_rows] <= prepared.view.history_length
    assert kept.sum() > 20
    assert_same_inputs(prepared, store_url, rows[kept])


def test_candidates_of_the_newest_live_room(prepared: Prepared, store_url: str) -> None:
    samples = prepared.samples
    rows = prepared.rows("test")[:200]
    stored = {}
    for author, live in zip(prepared.authors["author_id"], prepared.authors["live_id"], strict=True):
        stored[int(author)] = int(live)  # sorted by live_id, so the last is the newest
    newest = np.array([stored[int(samples["author_id"][r])] == samples["live_id"][r] for r in rows])
    expected, (_, found) = gather(prepared, rows).candidates, served(prepared, store_url, rows)
    assert newest.sum() > 20
    assert np.array_equal(found[newest], expected[newest])
    ids = [prepared.view.columns("candidate").index(name) for name in ("author_id", "live_id")]
    assert np.array_equal(found[:, ids], expected[:, ids])


def test_unknown_users_and_authors_are_missing(prepared: Prepared, store_url: str) -> None:
    (answer,) = read(store_url, [-5], [[-7]])
    inputs = user_inputs(prepared.view, answer.user, -5, {}, 0)
    assert inputs.video_length.tolist() == inputs.live_length.tolist() == [0]
    assert (inputs.video == MISSING).all()
    matrix, unknown = candidate_matrix(prepared.view, np.array([-7]), np.array([MISSING]), answer.authors)
    assert unknown.tolist() == [True]
    assert sorted(matrix[0].tolist())[:-1] == [MISSING] * (matrix.shape[1] - 1)


@pytest.mark.parametrize("at_once", [1, 7, 10_000])
def test_users_are_written_in_pieces(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr("model.materialize.USERS_AT_ONCE", at_once)
    small = replace(prepared, users={name: column[:20] for name, column in prepared.users.items()})
    seen: list[tuple[int, int]] = []
    url = f"lmdb://{tmp_path / 'store'}"
    made = asyncio.run(materialize(small, url, progress=lambda done, total: seen.append((done, total))))
    assert made.users == made.verified == 20
    steps = -(-20 // at_once) + 1  # all authors in one
    assert seen == [(done, steps) for done in range(1, steps + 1)]
    ends = at_the_end(prepared)
    assert_same_inputs(ends, url, np.arange(20))


def test_materialize_again_changes_nothing(prepared: Prepared, tmp_path: Path) -> None:
    url = f"lmdb://{tmp_path / 'store'}"
    for _ in range(2):
        asyncio.run(materialize(prepared, url))
    data = at_the_end(prepared)
    assert_same_inputs(data, url, np.arange(0, len(data.user_ids()), 10))


@pytest.mark.parametrize("jobs", [1, 2])
def test_as_of_a_moment(prepared: Prepared, tmp_path: Path, redis_url: str, jobs: int) -> None:
    """Redis, by one process and by two, holds what was known at the moment and nothing else."""
    data = at_the_end(prepared)
    moment = int(np.median(data.events["video"].known_at()))
    made = asyncio.run(materialize(data, redis_url, Options(as_of_ms=moment, jobs=jobs)))
    known = {domain: int((events.known_at() <= moment).sum()) for domain, events in data.events.items()}
    assert made.events == known
    assert 0 < known["video"] < len(data.events["video"])
    at_moment = replace(data, samples={**data.samples, "request_time": np.full(made.users, moment)})
    for domain in DOMAINS:
        ends = history_ends(data.events[domain], np.arange(made.users), np.full(made.users, moment))
        at_moment.samples[f"{domain}_end"] = ends
    assert_same_inputs(at_moment, redis_url, np.arange(made.users))
    newest = [
        answer.user.video["event_time"].max()
        for answer in read(redis_url, data.user_ids().tolist(), [[]] * made.users)
        if answer.user is not None and len(answer.user.video)
    ]
    assert max(newest) <= moment


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("as_of", [False, True])
def test_the_newest_room_is_the_one_last_asked_for(prepared: Prepared, tmp_path: Path, as_of: bool, jobs: int) -> None:
    """Though ids do not rise with time; and no room is from after the moment."""
    data = with_falling_room_ids(prepared, tmp_path / "data")
    times = np.asarray(data.samples["request_time"])
    moment = int(np.quantile(times, 0.4)) if as_of else None
    last: dict[int, tuple[int, int]] = {}
    for author, live, at in zip(data.samples["author_id"], data.samples["live_id"], times, strict=True):
        if moment is None or at <= moment:
            last[int(author)] = max(last.get(int(author), (0, 0)), (int(at), int(live)))
    url = f"lmdb://{tmp_path}/store"
    made = asyncio.run(materialize(data, url, Options(as_of_ms=moment, jobs=jobs)))
    named = set(zip(data.samples["author_id"].tolist(), data.samples["live_id"].tolist(), strict=True))
    table = list(zip(data.authors["author_id"].tolist(), data.authors["live_id"].tolist(), strict=True))
    first = {room: int(times[data.samples["live_id"] == room[1]].min()) for room in named}
    kept = [room for room in table if moment is None or first.get(room, 0) <= moment]
    assert made.lives == len(kept) <= len(table)
    assert (len(kept) < len(table)) == as_of
    answer = read(url, [int(data.user_ids()[0])], [np.unique(data.authors["author_id"]).tolist()])[0]
    newest = {author: int(rooms["live_id"][-1]) for author, rooms in answer.authors.items()}
    assert {author for author, _ in kept} == set(newest)
    assert {author: newest[author] for author in last} == {author: live for author, (_, live) in last.items()}


def test_a_load_into_redis_that_was_killed_goes_on(
    prepared: Prepared, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.materialize.USERS_AT_ONCE", 50)

    def stop_at_three(done: int, _: int) -> None:
        if done == 3:
            raise KilledError

    with pytest.raises(KilledError):
        asyncio.run(materialize(prepared, redis_url, progress=stop_at_three))
    assert read(redis_url, [int(prepared.user_ids()[0])], [[]])[0].user is None  # readers see nothing of it
    seen: list[tuple[int, int]] = []
    said: list[str] = []
    asyncio.run(materialize(prepared, redis_url, None, lambda *step: seen.append(step), said.append))
    before = seen[0][0] - 1
    assert before in (3, 4)  # another step may have been under way
    assert seen == [(done, 7) for done in range(before + 1, 8)]
    assert said[0] == f"going on with generation 2, {before} steps are done"
    assert_same_inputs(at_the_end(prepared), redis_url, np.arange(0, len(prepared.user_ids()), 7))
