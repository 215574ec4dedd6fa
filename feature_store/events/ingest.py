"""What `farm ingest` does: events from a file into the store, a worker, dead letters."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from prometheus_client import start_http_server

from feature_store.events.batch import EventBatch
from feature_store.events.log import EventLog, LogBusy
from feature_store.events.parse import MAX_EVENTS, InvalidEvent, parse_lines
from feature_store.events.sink import Sink, open_sink
from feature_store.events.worker import EventWorker, WorkerSettings
from feature_store.logs import set_up_logs
from feature_store.redis.store import RedisStore
from feature_store.schema import RecordSchema
from feature_store.store import FeatureStore, StoreError, open_store

_LISTED = 100  # dead letters

Say = Callable[[str], None]


@dataclass(frozen=True)
class Ingested:
    """How many events of a file were taken."""

    accepted: int
    skipped: int


async def ingest(url: str, lines: Iterable[bytes], skip: bool, progress: Say) -> Ingested:
    """Send events, one JSON object a line, to the store at `url`; wait when its log is full.

    skip: leave out events that cannot be read, and count them.  Else the first of them is a ValueError that names its
    line; the lines before it were accepted, and may be sent again.
    """
    accepted = skipped = 0
    async with open_store(url) as store:
        sink = open_sink(store)
        for number, some in _numbered(lines):
            batch, refused = _read(some, store.schema, number, skip, accepted)
            await _accept(sink, batch, progress)
            accepted, skipped = accepted + len(batch), skipped + refused
            if accepted // 100_000 > (accepted - len(batch)) // 100_000:
                progress(f"{accepted:,} events accepted")
    return Ingested(accepted, skipped)


async def work(url: str, metrics_host: str, metrics_port: int | None, say: Say) -> None:
    """Merge the log of the store at `url` until SIGTERM or SIGINT; what is in hand then is finished.

    metrics_port: of Prometheus metrics, on metrics_host; 0 takes a free one and says which; None: no metrics.
    """
    set_up_logs("events")
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with open_store(url) as store:
        log = _log_of(store, url)
        assert isinstance(store, RedisStore), "only Redis has a log"
        name = f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}"
        if metrics_port is not None:
            server, _ = start_http_server(metrics_port, metrics_host)
            say(f"metrics on http://{metrics_host}:{server.server_port}/metrics")
        say(f"worker {name} merges the log of {store.link.where}")
        await EventWorker(log, store, name, WorkerSettings(claim_idle_ms=store.settings.claim_idle_ms)).run(stop)
    say("stopped")


async def dead_letters(url: str, replay: str | None, discard: str | None) -> dict[str, Any]:
    """The newest dead letters of the store at `url`; before it, replay or discard one by its id, or "all".

    ValueError for an id that is not there.
    """
    async with open_store(url) as store:
        letters = _log_of(store, url).dead_letters
        done: dict[str, Any] = {}
        if replay is not None:
            done |= asdict(await letters.replay(_ids(replay)))
        if discard is not None:
            done["discarded"] = await letters.discard(_ids(discard))
        listed = [
            {
                "id": one.id,
                "reason": one.reason,
                "entry": one.entry,
                "accepted_ms": one.accepted_ms,
                "bytes": len(one.value),
            }
            for one in await letters.list(_LISTED)
        ]
        return {**done, "dead_letters": await letters.count(), "newest": listed}


def _ids(chosen: str) -> list[str] | None:
    return None if chosen == "all" else [chosen]


def _log_of(store: FeatureStore, url: str) -> EventLog:
    log = EventLog.of(store)
    if log is None:
        raise StoreError(f"store {url}: it has no log: LMDB merges events when they are accepted, and needs no worker")
    return log


def _numbered(lines: Iterable[bytes]) -> Iterator[tuple[int, list[bytes]]]:
    """Some lines at a time, and the number of the first."""
    rest, number = iter(lines), 1
    while some := list(islice(rest, MAX_EVENTS)):
        yield number, some
        number += len(some)


def _read(lines: list[bytes], schema: RecordSchema, number: int, skip: bool, accepted: int) -> tuple[EventBatch, int]:
    """The events of some lines, and how many were left out."""
    now_ms = int(1000 * time.time())
    try:
        return parse_lines(lines, schema, now_ms, number), 0
    except InvalidEvent as error:
        if not skip:
            raise ValueError(f"{error}; {accepted:,} events before it were accepted, and may be sent again") from None
    good, refused = [], 0
    for row, line in enumerate(lines):
        try:
            good.append(parse_lines([line], schema, now_ms, number + row))
        except InvalidEvent:
            refused += 1
    return EventBatch.concat([EventBatch.empty(schema), *good]), refused


async def _accept(sink: Sink, batch: EventBatch, progress: Say) -> None:
    """Wait as long as the log is busy: a file does not run away."""
    while True:
        try:
            return await sink.accept(batch)
        except LogBusy as error:
            progress(f"waiting: {error}")
            await asyncio.sleep(error.retry_after_s)
