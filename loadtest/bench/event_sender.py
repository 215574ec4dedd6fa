"""Sends the events of a plan, as a process of its own: open loop, and what was refused again until it is taken.

    python -m loadtest.bench.event_sender PLAN.json RESULT.json

Prints the time [s since 1970] at which the first request is due.  After SIGTERM it begins no more of them.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Protocol

from feature_store.events.log import EventLog, LogBusy
from feature_store.events.parse import parse_events
from feature_store.store import StoreError, open_store
from loadtest.bench.event_traffic import Event, Traffic
from service.client import RankClient, RankError

_AGAIN_S = 0.2  # after a refusal that does not say when
_BUSY_S = 1.0  # after a 503, as its Retry-After says
_UNDER_WAY = 1000  # requests over HTTP; those of some seconds without an answer


@dataclass(frozen=True)
class Plan:
    """What to send, where and how fast."""

    traffic: Traffic
    target: str  # URL of a store with a log, or of a service
    requests_per_s: float
    patience_s: float  # after the last request; what is not taken by then is not sent again

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> Plan:
        fields = json.loads(path.read_text())
        traffic = fields.pop("traffic")
        return cls(Traffic(**traffic | {"known_users": tuple(traffic["known_users"])}), **fields)


@dataclass
class Sent:
    """What became of the requests."""

    began: float  # s since 1970, when the first request was due
    ended: float = 0.0  # when the last one was begun
    acknowledged: list[float | None] = field(default_factory=list)  # when, of each request that was begun
    tries: int = 0
    refusals: dict[str, int] = field(default_factory=dict)  # by reason

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> Sent:
        return cls(**json.loads(path.read_text()))

    def longest_gap_s(self) -> float:
        """The longest time without an acknowledgement, from the first request on."""
        times = sorted([self.began, *(at for at in self.acknowledged if at is not None)])
        return max((after - before for before, after in pairwise(times)), default=0.0)


class RefusedError(Exception):
    """Not taken; the same may be sent again."""

    def __init__(self, reason: str, again_s: float = _AGAIN_S) -> None:
        super().__init__(reason)
        self.reason, self.again_s = reason, again_s


class Target(Protocol):
    """Takes requests."""

    async def send(self, events: list[Event]) -> None:
        """RefusedError when it was not taken."""


class LogTarget:
    """The log itself, in this process."""

    def __init__(self, log: EventLog) -> None:
        self._log = log

    async def send(self, events: list[Event]) -> None:
        batch = parse_events(events, self._log.schema, int(1000 * time.time()))
        try:
            await self._log.append(batch)
        except StoreError as error:
            again_s = error.retry_after_s if isinstance(error, LogBusy) else _AGAIN_S
            raise RefusedError(type(error).__name__, again_s) from error


class HttpTarget:
    """POST /events of a service: a thread and a connection for each request under way."""

    def __init__(self, url: str, threads: ThreadPoolExecutor) -> None:
        self._url, self._threads = url, threads
        self._idle: list[RankClient] = []

    async def send(self, events: list[Event]) -> None:
        client = self._idle.pop() if self._idle else RankClient(self._url, retries=0, connections=1)
        try:
            await asyncio.get_running_loop().run_in_executor(self._threads, client.send_events, events)
        except RankError as error:
            if error.status is None:
                raise RefusedError("no answer") from error
            if error.status != 503:
                raise
            raise RefusedError(f"503 {error.problem['type'].rpartition(':')[2]}", _BUSY_S) from error
        finally:
            self._idle.append(client)


async def send(plan: Plan) -> Sent:
    """Send each request at its time, however slow the answers are; then wait for those under way."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with AsyncExitStack() as stack:
        target = await _opened(plan.target, stack)
        sent = Sent(time.time() + 0.1)
        print(sent.began, flush=True)
        under_way = []
        for number in range(plan.traffic.requests):
            await asyncio.sleep(sent.began + number / plan.requests_per_s - time.time())
            if stop.is_set():
                break
            sent.acknowledged.append(None)
            sent.ended = time.time()
            under_way.append(asyncio.create_task(_deliver(target, plan.traffic.request(number), number, sent)))
        done, late = await asyncio.wait(under_way, timeout=plan.patience_s)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        for task in done:
            task.result()
    return sent


async def _deliver(target: Target, events: list[Event], number: int, sent: Sent) -> None:
    while True:
        sent.tries += 1
        try:
            await target.send(events)
        except RefusedError as error:
            sent.refusals[error.reason] = sent.refusals.get(error.reason, 0) + 1
            await asyncio.sleep(error.again_s)
        else:
            sent.acknowledged[number] = time.time()
            return


async def _opened(url: str, stack: AsyncExitStack) -> Target:
    if url.startswith("http"):
        return HttpTarget(url, stack.enter_context(ThreadPoolExecutor(_UNDER_WAY)))
    log = EventLog.of(await stack.enter_async_context(open_store(url)))
    assert log is not None, "only stores with a log"
    return LogTarget(log)


if __name__ == "__main__":
    asyncio.run(send(Plan.load(Path(sys.argv[1])))).save(Path(sys.argv[2]))
