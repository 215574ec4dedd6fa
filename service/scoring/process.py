"""The engine process: one for each GPU, which scores for all workers over a unix socket.

A Python process for each worker and GPU would hold the model once each and switch contexts; so one holds it, and its
batches are made of what all workers ask.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from service.scoring.executors import ScorerClosedError, TooLateError
from service.scoring.scorer import NotProbabilitiesError, Scorer
from service.scoring.wire import CANCEL, FAILED, HELLO, LATE, REFUSED, SCORE, SCORED, SPOILT, Frames, Layout, frame


@dataclass(frozen=True)
class Hello:
    """Who answers on a socket."""

    version: str  # of the model
    provider: str  # in use

    def to_bytes(self) -> bytes:
        return json.dumps(vars(self)).encode()

    @classmethod
    def from_bytes(cls, body: bytes) -> Hello:
        return cls(**json.loads(body))


class ScorerServer:
    """Answers for `scorer` on a unix socket, in the loop that runs."""

    def __init__(self, scorer: Scorer, layout: Layout, hello: Hello) -> None:
        self._scorer, self._layout, self._hello = scorer, layout, hello
        self._server: asyncio.AbstractServer | None = None

    async def start(self, path: Path) -> None:
        """path: of the socket, in a folder that others cannot enter."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(self._connection, str(path))

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()

    def _connection(self) -> asyncio.Protocol:
        return _Connection(self._scorer, self._layout, self._hello)


class _Connection(asyncio.Protocol):
    """One worker's."""

    _transport: asyncio.WriteTransport

    def __init__(self, scorer: Scorer, layout: Layout, hello: Hello) -> None:
        self._scorer, self._layout, self._hello = scorer, layout, hello
        self._frames = Frames()
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's is no subclass
        self._transport.write(frame(HELLO, 0, self._hello.to_bytes()))

    def data_received(self, data: bytes) -> None:
        for kind, number, body in self._frames.feed(data):
            if kind == SCORE:
                self._begin(number, body)
            elif kind == CANCEL and number in self._tasks:
                self._tasks[number].cancel()

    def connection_lost(self, error: Exception | None) -> None:
        for task in list(self._tasks.values()):
            task.cancel()

    def _begin(self, number: int, body: bytes) -> None:
        task = self._tasks[number] = asyncio.get_running_loop().create_task(self._score(number, body))
        task.add_done_callback(lambda _: self._tasks.pop(number, None))  # also when it is cancelled before it begins

    async def _score(self, number: int, body: bytes) -> None:
        try:
            users, candidates, left_s, low = self._layout.parse_request(body)
            score = await self._scorer.score(users, candidates, time.monotonic() + left_s, low)
            kind, answer = SCORED, self._layout.answer(score)
        except TooLateError as error:
            kind, answer = LATE, str(error).encode()
        except ScorerClosedError as error:
            kind, answer = REFUSED, str(error).encode()
        except NotProbabilitiesError as error:
            kind, answer = SPOILT, str(error).encode()
        except Exception as error:  # whatever the engine says of these inputs is the asker's to report
            kind, answer = FAILED, f"{type(error).__name__}: {error}".encode()
        if not self._transport.is_closing():
            self._transport.write(frame(kind, number, answer))
