"""The process of the load generator: `python -m loadtest.load.generator SPEC.json RESULT.json [CPU]`."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import numpy as np
import uvloop

from loadtest.load.client import Exchange
from loadtest.load.figures import Answer, Latencies, LoadResult
from loadtest.load.loops import ClosedLoop, OpenLoop, Sender, arrivals
from loadtest.load.run import Load, LoadError, trace_file
from loadtest.load.trace import NO_ANSWER, Kinds, Trace

_POLL_S = 0.005  # for the last answers


def main(words: Sequence[str]) -> int:
    """The exit code; what is wrong is one line on stderr."""
    spec, result, *cpu = words
    if cpu:
        os.sched_setaffinity(0, {int(cpu[0])})
    try:
        found = generate(Load.load(Path(spec)))
    except (LoadError, OSError) as error:
        print(f"load generator: {error}", file=sys.stderr)
        return 1
    Path(result).write_text(json.dumps(asdict(replace(found, trace=None))))
    if found.trace is not None:
        found.trace.save(trace_file(Path(result)))
    return 0


def generate(load: Load) -> LoadResult:
    """Send a load from this process.  OSError when nobody listens, LoadError when nothing is answered."""
    bodies = load.bodies.read_bytes().splitlines()
    target = urlsplit(load.url)
    kinds = Kinds() if load.trace else None
    requests = [_request(target, body, load.headers) for body in bodies]
    sender = Sender(requests, load.first, load.keep_every, kinds)
    gc.disable()  # nothing here is cyclic, and a collection would be in somebody's latency
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        course = runner.run(_run(load, target, sender))
    found = _result(load, course, sender.exchanges, bodies)
    return found if kinds is None else replace(found, trace=_trace(sender.exchanges, kinds))


def _request(target: SplitResult, body: bytes, headers: Mapping[str, str]) -> bytes:
    path = target.path + (f"?{target.query}" if target.query else "")
    head = f"POST {path or '/'} HTTP/1.1\r\nHost: {target.netloc}\r\nContent-Type: application/json\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


@dataclass(frozen=True)
class _Course:
    """How a loop went."""

    loop: ClosedLoop | OpenLoop
    begins: float  # of what is measured, perf_counter
    ends: float
    cpu_s: float  # of the whole
    wall_s: float


async def _run(load: Load, target: SplitResult, sender: Sender) -> _Course:
    seconds = load.warm_up_s + load.seconds
    loop: ClosedLoop | OpenLoop
    if load.rate is None:
        loop = ClosedLoop(sender, load.clients)
    else:
        loop = OpenLoop(sender, load.clients, arrivals(load.rate, seconds, load.seed))
    for client in loop.clients:
        await client.connect(target.hostname or "127.0.0.1", target.port or 80)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    start, cpu = time.perf_counter(), time.process_time()
    loop.start()
    print("begun", flush=True)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stopped.wait(), seconds)
    loop.stop()
    ends = min(time.perf_counter(), start + seconds)
    gives_up = time.perf_counter() + load.patience_s
    while loop.waiting() and time.perf_counter() < gives_up:
        await asyncio.sleep(_POLL_S)
    cpu_s, wall_s = time.process_time() - cpu, time.perf_counter() - start
    for client in loop.clients:
        client.close()  # a request that is still under way becomes one without an answer
    await asyncio.sleep(0)
    return _Course(loop, start + load.warm_up_s, ends, cpu_s, wall_s)


def _result(load: Load, course: _Course, exchanges: list[Exchange], bodies: list[bytes]) -> LoadResult:
    loop, begins = course.loop, course.begins
    seconds = max(course.ends - begins, 1e-9)  # less than asked for when it was stopped
    counted = [exchange for exchange in exchanges if exchange.due >= begins]
    good = [exchange for exchange in counted if 200 <= exchange.status < 300]
    statuses = Counter(exchange.status for exchange in counted)
    errors = statuses.pop(NO_ANSWER, 0) + loop.waiting()
    if not good and not load.trace:
        raise LoadError(f"no request was answered with 2xx: statuses {dict(statuses)}, {errors} without an answer")
    in_time = sum(begins <= e.done < course.ends for e in exchanges if 200 <= e.status < 300)
    answered = sum(exchange.status != NO_ANSWER for exchange in exchanges)
    return LoadResult(
        **asdict(Latencies.of(_ms(good))),
        seconds=seconds,
        per_second=in_time / seconds,
        statuses=dict(statuses),
        errors=errors,
        answered=answered,
        generator_cpu_share=course.cpu_s / course.wall_s,
        generator_cpu_us=1e6 * course.cpu_s / max(1, answered),
        late_p99_ms=1000 * float(np.percentile(loop.late, 99)) if loop.late else 0.0,
        by_candidates=_by_candidates(good, bodies) if load.by_candidates else {},
        answers=[
            Answer(body=e.body, ms=1000 * (e.done - e.due), text=e.answer.decode(errors="replace"))
            for e in good
            if e.answer is not None
        ],
    )


def _trace(exchanges: Sequence[Exchange], kinds: Kinds) -> Trace:
    rows = {name: np.array([getattr(e, name) for e in exchanges]) for name in ("due", "sent", "done", "body", "kind")}
    return Trace(**rows, kinds=tuple(kinds.seen))


def _ms(exchanges: Sequence[Exchange]) -> np.ndarray:
    return np.array([1000 * (exchange.done - exchange.due) for exchange in exchanges])


def _by_candidates(exchanges: list[Exchange], bodies: list[bytes]) -> dict[int, Latencies]:
    counts = [len(json.loads(body)["candidates"]) for body in bodies]
    groups: dict[int, list[Exchange]] = {}
    for exchange in exchanges:
        groups.setdefault(counts[exchange.body], []).append(exchange)
    return {count: Latencies.of(_ms(group)) for count, group in sorted(groups.items())}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
