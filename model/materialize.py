"""Materialize: the histories and attributes of PREPARED into a feature store, so that the service can read them.

Into LMDB they are merged with what is there.  Into Redis they are loaded beside it, into a new generation that readers
are switched to at the end (feature_store.redis.generations).  Either way no live event is lost.
Letters: U users, E events.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
import polars as pl

from feature_store.merge import merge_batch, merge_histories
from feature_store.records import UserBatch, UserRecord
from feature_store.schema import DOMAINS, Domain
from feature_store.store import FeatureStore, StoreError, open_store
from model.datasets.prepared import Columns, Events, Prepared

USERS_AT_ONCE = 5_000
AUTHORS_AT_ONCE = 50_000
VERIFIED_USERS = 200  # read back, spread over all
_STEPS_AT_ONCE = 2  # of a process: one is read from the logs while another is written

Progress = Callable[[int, int], None]
Done = Callable[[str], Awaitable[None]]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Materialized:
    """What was written."""

    users: int
    events: dict[Domain, int]  # that stand in the logs up to the moment asked for
    lives: int
    replayed: int  # live events that came meanwhile
    verified: int  # users read back
    ready_s: float  # until readers could read all of it


@dataclass(frozen=True)
class Options:
    """How to load."""

    as_of_ms: int | None = None  # events known by then; None: all
    jobs: int = 1  # processes
    allow_gap: bool = False  # although live events between the logs' end and the log's start are in neither
    keep_previous: bool = False  # the generation that was read before, in Redis


@dataclass(frozen=True)
class Loaded:
    """A store that holds the source."""

    replayed: int  # live events
    verified: int  # users read back
    ready_at: float  # perf_counter when readers could read all of it


class Source:
    """PREPARED as of a moment, in steps of users and of authors."""

    def __init__(self, data: Prepared, as_of_ms: int | None) -> None:
        self.data, self.as_of_ms = data, as_of_ms
        self.end_ms = max(map(_last_known_at, data.events.values()), default=0) if as_of_ms is None else as_of_ms
        self._rooms = rooms_by_last_request(data, as_of_ms)
        self.users, self.lives = len(data.user_ids()), len(self._rooms)

    @property
    def name(self) -> str:
        """Tells one load from another."""
        return f"{self.data.path.resolve()} as of {self.end_ms}, {self.users} users, {self.lives} lives"

    def steps(self) -> list[str]:
        users = [f"users {start}" for start in range(0, self.users, USERS_AT_ONCE)]
        return users + [f"authors {start}" for start in range(0, self.lives, AUTHORS_AT_ONCE)]

    async def write(self, store: FeatureStore, step: str) -> None:
        """One step of the load."""
        kind, _, start = step.partition(" ")
        if kind == "users":
            await store.put_users(self.batch(int(start), int(start) + USERS_AT_ONCE), self.end_ms)
        else:
            await store.put_authors(*self.authors(int(start), int(start) + AUTHORS_AT_ONCE))

    def batch(self, start: int, stop: int) -> UserBatch:
        """User rows start..stop-1 with the newest events that a store keeps of each."""
        histories = [self._histories(domain, start, min(stop, self.users)) for domain in DOMAINS]
        attributes = _records(self.data, "user", self.data.users, slice(start, stop))
        return UserBatch(np.asarray(self.data.user_ids()[start:stop]), attributes, *histories[0], *histories[1])

    def authors(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Rooms in order of their last request, with times 1 ms apart that keep it, the last at the end of the logs."""
        records = _records(self.data, "author", self.data.authors, self._rooms[start:stop])
        return records, self.end_ms - self.lives + 1 + start + np.arange(len(records))

    def events(self) -> dict[Domain, int]:
        """How many were known by the moment."""
        found, whole = self.data.events.items(), self.as_of_ms is None
        return {domain: len(e) if whole else int((e.known_at() <= self.end_ms).sum()) for domain, e in found}

    def _histories(self, domain: Domain, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Events are sorted by (user, known_at): a user's newest are its last.  -> records [E], offsets [U + 1]"""
        events = self.data.events[domain]
        bounds = np.asarray(events.offsets[start : stop + 1])
        rows = slice(int(bounds[0]), int(bounds[-1]))
        known_at = events.columns["event_time"][rows] + events.columns["known_after"][rows].astype(np.int64)
        known = np.concatenate([[0], np.cumsum(known_at <= self.end_ms)])  # events before each row
        counts = np.diff(known[bounds - bounds[0]])  # [U]
        sizes = np.minimum(counts, self.data.schema.history_length)
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        index = np.arange(offsets[-1]) + np.repeat(bounds[:-1] + counts - sizes - offsets[:-1], sizes)
        return _records(self.data, domain, events.columns, index), offsets


def rooms_by_last_request(data: Prepared, as_of_ms: int | None = None) -> np.ndarray:
    """Rows of the author table in the order in which their rooms were last asked for, so that the newest is the last.

    Ids need not rise with time, text ids never do.  Rooms that no sample names come first, in order of their ids.
    as_of_ms: leaves out rooms that were first asked for after it.  [lives] int64
    """
    keys = ["author_id", "live_id"]
    requests = pl.DataFrame({name: np.asarray(data.samples[name]) for name in (*keys, "request_time")})
    first, time = pl.col("request_time").min().alias("first"), pl.col("request_time")
    by_then = time if as_of_ms is None else time.filter(time <= as_of_ms)
    seen = requests.group_by(keys).agg(first, by_then.max().alias("last"))
    rooms = pl.DataFrame({name: np.asarray(data.authors[name]) for name in keys}).with_row_index("row")
    rooms = rooms.join(seen, on=keys, how="left", maintain_order="left")
    if as_of_ms is not None:
        rooms = rooms.filter(pl.col("first").is_null() | (pl.col("first") <= as_of_ms))
    order: np.ndarray = rooms.sort("last", "row", nulls_last=False)["row"].to_numpy().astype(np.int64)
    return order


def _last_known_at(events: Events) -> int:
    """When the last outcome was known, 0 without events.  The events of a user are in order of it."""
    last = np.unique(events.offsets[1:]) - 1
    last = last[last >= 0]
    known_at = events.columns["event_time"][last] + events.columns["known_after"][last].astype(np.int64)
    return int(known_at.max(initial=0))


async def materialize(
    data: Prepared,
    url: str,
    options: Options | None = None,
    progress: Progress | None = None,
    say: Say = lambda _: None,
) -> Materialized:
    """Write every user and author of PREPARED into the store at `url`, which is made when there is none.

    A load into Redis that was broken off goes on where it stood.  progress: called with steps done and steps in all.
    Raises StoreError (SchemaMismatch when the store holds records of another schema, LogGap when live events would
    be missing).
    """
    chosen, start = options or Options(), time.perf_counter()
    source = Source(data, chosen.as_of_ms)
    async with open_store(url, data.schema, create=True) as store:
        if url.startswith("lmdb:"):
            steps = source.steps()
            await _fill(store, source, steps, url, None, chosen.jobs, _counter(progress, len(steps)))
            loaded = Loaded(0, await _verify(store, source), time.perf_counter())
        else:
            loaded = await _load_beside(store, source, url, chosen, progress, say)
    counts = source.users, source.events(), source.lives
    return Materialized(*counts, loaded.replayed, loaded.verified, loaded.ready_at - start)


async def _load_beside(
    store: FeatureStore, source: Source, url: str, options: Options, progress: Progress | None, say: Say
) -> Loaded:
    """Load into a new generation, verify it, switch."""
    from feature_store.events.log import EventLog
    from feature_store.redis.generations import Loading
    from feature_store.redis.store import RedisStore

    assert isinstance(store, RedisStore)
    loading = Loading(store, EventLog(store.link, store.schema))
    async with loading.alone():
        load = await loading.begin(source.name, source.end_ms, options.allow_gap)
        if load.done:
            say(f"going on with generation {load.generation}, {len(load.done)} steps are done")
        count = _counter(progress, len(source.steps()), len(load.done))

        async def done(step: str) -> None:
            await loading.done(step)
            await count(step)

        target = store.into(load.generation)
        steps = [step for step in source.steps() if step not in load.done]
        await _fill(target, source, steps, url, load.generation, options.jobs, done)
        verified = await _verify(target, source)
        finished = await loading.finish(load, say)
        ready_at = time.perf_counter()
        await (loading.forget() if options.keep_previous else loading.retire(finished.previous))
        return Loaded(finished.replayed, verified, ready_at)


def _counter(progress: Progress | None, total: int, before: int = 0) -> Done:
    """Tells `progress` of each step."""
    done = before

    async def count(_: str) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    return count


async def _fill(
    store: FeatureStore, source: Source, steps: list[str], url: str, generation: int | None, jobs: int, done: Done
) -> None:
    """Write the steps, in this process or in several."""
    if jobs == 1:
        rest = iter(steps)

        async def work() -> None:
            for step in rest:
                await source.write(store, step)
                await done(step)

        tasks = [asyncio.create_task(work()) for _ in range(_STEPS_AT_ONCE)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for _ in rest:  # no further step begins, even where a cancellation comes to nothing
                pass
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return
    start = (str(source.data.path), source.as_of_ms, url, generation)
    with ProcessPoolExecutor(jobs, get_context("spawn"), _open_in_process, start) as pool:
        loop = asyncio.get_running_loop()
        running = {loop.run_in_executor(pool, _write_in_process, step): step for step in steps}
        try:
            for future in running:
                await future
                await done(running[future])
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_process: tuple[Source, FeatureStore, asyncio.Runner] | None = None


def _open_in_process(path: str, as_of_ms: int | None, url: str, generation: int | None) -> None:
    """What a process of the pool keeps open."""
    global _process  # a pool's initializer has no other way to hand something on
    data, runner = Prepared.open(path), asyncio.Runner()
    store = open_store(url, data.schema)
    _process = Source(data, as_of_ms), store if generation is None else _into(store, generation), runner


def _write_in_process(step: str) -> None:
    assert _process is not None, "the pool's initializer opens it"
    source, store, runner = _process
    runner.run(source.write(store, step))


def _into(store: FeatureStore, generation: int) -> FeatureStore:
    from feature_store.redis.store import RedisStore

    assert isinstance(store, RedisStore), "only Redis has generations"
    return store.into(generation)


async def _verify(store: FeatureStore, source: Source) -> int:
    """Read some users back; returns how many.  StoreError when what was written is not part of what is stored."""
    erased = {user_id async for some in store.scan_erased() for user_id, _ in some}
    chosen = np.unique(np.linspace(0, source.users - 1, min(VERIFIED_USERS, source.users)).astype(np.int64))
    verified = 0
    for row in chosen.tolist():
        batch = merge_batch(store.schema, source.batch(row, row + 1))
        user_id = int(batch.user_ids[0])
        if user_id in erased:
            continue
        answer = await store.read(user_id, [])
        if answer.user is None or not _holds(store, answer.user, batch):
            raise StoreError(f"user {user_id} was written and does not read back; nothing was switched")
        verified += 1
    return verified


def _holds(store: FeatureStore, stored: UserRecord, written: UserBatch) -> bool:
    """Whether merging what was written once more would change nothing."""
    for domain in DOMAINS:
        history = stored.history(domain)
        events = np.concatenate([history, written.video if domain == "video" else written.live])
        merged, _ = merge_histories(store.schema, domain, events, np.zeros(len(events), np.int64), 1)
        if merged.tobytes() != history.tobytes():
            return False
    return True


def _records(data: Prepared, record: str, columns: Columns, index: np.ndarray | slice) -> np.ndarray:
    """Rows of flat columns as packed records: the dtypes are the same."""
    names = [field.name for field in data.schema.fields(record)]
    first = columns[names[0]][index]
    records = np.empty(len(first), data.schema.dtype(record))
    for name in names:
        records[name] = columns[name][index]
    return records
