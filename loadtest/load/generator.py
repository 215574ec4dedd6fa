"""The process of the load generator: `python -m loadtest.load.generator SPEC.json RESULT.json [CPU]`."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import numpy as np
import uvloop

from loadtest.load.client import NO_ANSWER, Exchange
from loadtest.load.figures import Answer, Latencies, LoadResult, percentiles
from loadtest.load.loops import ClosedLoop, OpenLoop, Sender, arrivals
from loadtest.load.run import Load, LoadError

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
    Path(result).write_text(json.dumps(asdict(found)))
    return 0


def generate(load: Load) -> LoadResult:
    """Send a load from this process.  OSError when nobody listens, LoadError when nothing is answered."""
    bodies = load.bodies.read_bytes().splitlines()
    target = urlsplit(load.url)
    sender = Sender([_request(target, body) for body in bodies], load.first, load.keep_every)
    gc.disable()  # nothing here is cyclic, and a collection would be in somebody's latency
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        loop, start, cpu_s, wall_s = runner.run(_run(load, target, sender))
    return _result(load, loop, sender.exchanges, bodies, start, cpu_s / wall_s, cpu_s)


def _request(target: SplitResult, body: bytes) -> bytes:
    path = target.path + (f"?{target.query}" if target.query else "")
    head = f"POST {path or '/'} HTTP/1.1\r\nHost: {target.netloc}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def _run(load: Load, target: SplitResult, sender: Sender) -> tuple[ClosedLoop | OpenLoop, float, float, float]:
    """The loop, when it began (perf_counter), and the CPU and the time it took [s]."""
    seconds = load.warm_up_s + load.seconds
    loop: ClosedLoop | OpenLoop
    if load.rate is None:
        loop = ClosedLoop(sender, load.clients)
    else:
        loop = OpenLoop(sender, load.clients, arrivals(load.rate, seconds, load.seed))
    for client in loop.clients:
        await client.connect(target.hostname or "127.0.0.1", target.port or 80)
    start, cpu = time.perf_counter(), time.process_time()
    loop.start()
    await asyncio.sleep(seconds)
    loop.stop()
    ends = time.perf_counter() + load.patience_s
    while loop.waiting() and time.perf_counter() < ends:
        await asyncio.sleep(_POLL_S)
    spent = time.process_time() - cpu, time.perf_counter() - start
    for client in loop.clients:
        client.close()  # a request that is still under way becomes one without an answer
    await asyncio.sleep(0)
    return loop, start, *spent


def _result(
    load: Load,
    loop: ClosedLoop | OpenLoop,
    exchanges: list[Exchange],
    bodies: list[bytes],
    start: float,
    cpu_share: float,
    cpu_s: float,
) -> LoadResult:
    begins = start + load.warm_up_s
    counted = [exchange for exchange in exchanges if exchange.due >= begins]
    good = [exchange for exchange in counted if 200 <= exchange.status < 300]
    statuses = Counter(exchange.status for exchange in counted)
    errors = statuses.pop(NO_ANSWER, 0) + loop.waiting()
    if not good:
        raise LoadError(f"no request was answered with 2xx: statuses {dict(statuses)}, {errors} without an answer")
    in_time = sum(begins <= e.done < begins + load.seconds for e in exchanges if 200 <= e.status < 300)
    answered = sum(exchange.status != NO_ANSWER for exchange in exchanges)
    return LoadResult(
        requests=len(good),
        **percentiles(_ms(good)),
        seconds=load.seconds,
        per_second=in_time / load.seconds,
        statuses=dict(statuses),
        errors=errors,
        answered=answered,
        generator_cpu_share=cpu_share,
        generator_cpu_us=1e6 * cpu_s / answered,
        late_p99_ms=1000 * float(np.percentile(loop.late, 99)) if loop.late else 0.0,
        by_candidates=_by_candidates(good, bodies) if load.by_candidates else {},
        answers=[
            Answer(body=e.body, ms=1000 * (e.done - e.due), text=e.answer.decode(errors="replace"))
            for e in good
            if e.answer is not None
        ],
    )


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
