"""A scorer that asks engine processes."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import cast

import numpy as np

from feature_store.matrices import UserInputs
from service.admission.cost import CostModel
from service.scoring.executors import ScorerClosedError, TooLateError
from service.scoring.process import Hello
from service.scoring.scorer import NotProbabilitiesError, Score
from service.scoring.wire import CANCEL, HELLO, LATE, REFUSED, SCORE, SCORED, SPOILT, Frames, Layout, frame

_CONNECT_S = 5.0
_GRACE_S = 1.0  # beyond a deadline: a batch that has begun may end after it, an engine process that hangs never does


class EngineLostError(ScorerClosedError):
    """No engine process answers now."""


class RemoteScorer:
    """Over the engine processes behind some sockets: whoever has the least to do for this worker is asked.

    For one event loop, which opens the connections; one that was lost is opened again by the next request.
    """

    def __init__(self, paths: Sequence[Path], layout: Layout, version: str) -> None:
        """version: of the model that must answer."""
        self._peers = [_Peer(path, layout, version) for path in paths]
        self.costs = CostModel(len(self._peers))  # of which only the slowdown is learned here

    async def score(
        self, users: UserInputs, candidates: np.ndarray, deadline_at: float = math.inf, low: bool = False
    ) -> Score:
        left_s = deadline_at - time.monotonic()
        try:
            async with asyncio.timeout(None if math.isinf(left_s) else max(0.0, left_s) + _GRACE_S):
                return await self._ask(users, candidates, deadline_at, low)
        except TimeoutError:
            raise TooLateError("its deadline came before an answer of the engine process") from None

    async def _ask(self, users: UserInputs, candidates: np.ndarray, deadline_at: float, low: bool) -> Score:
        error: EngineLostError | None = None
        for peer in sorted(self._peers, key=lambda peer: peer.load):
            try:
                link = await peer.connect()
            except EngineLostError as lost:
                error = lost
                continue
            return await link.score(users, candidates, deadline_at - time.monotonic(), low)
        assert error is not None
        raise error

    def coming(self) -> AbstractContextManager[None]:
        return nullcontext()

    async def warm_up(self) -> None:
        """The engine processes have warmed up before they listen: find them."""
        for peer in self._peers:
            await peer.connect()

    async def close(self) -> None:
        for peer in self._peers:
            peer.close()


class _Peer:
    """One engine process, and the connection to it while there is one."""

    def __init__(self, path: Path, layout: Layout, version: str) -> None:
        self._path, self._layout, self._version = path, layout, version
        self._link: _Link | None = None
        self._opening = asyncio.Lock()

    @property
    def load(self) -> int:
        """Requests under way."""
        return 0 if self._link is None else len(self._link.waiting)

    async def connect(self) -> _Link:
        """EngineLostError when nobody answers, or another model does."""
        if self._link is not None and not self._link.lost:
            return self._link
        async with self._opening:
            if self._link is None or self._link.lost:
                self._link = await self._open()
            return self._link

    def close(self) -> None:
        if self._link is not None:
            self._link.close()

    async def _open(self) -> _Link:
        link = _Link(self._layout)
        try:
            async with asyncio.timeout(_CONNECT_S):
                await asyncio.get_running_loop().create_unix_connection(lambda: link, str(self._path))
                hello = await link.hello
        except BaseException as error:
            link.close()
            if isinstance(error, (OSError, TimeoutError)):
                raise EngineLostError(f"the engine process does not answer: {error!r}") from error
            raise
        if hello.version != self._version:
            link.close()
            raise EngineLostError(f"the engine process has model {hello.version}, this worker {self._version}")
        return link


class _Link(asyncio.Protocol):
    """An open connection.  Requests are numbered; answers come in any order."""

    _transport: asyncio.WriteTransport  # from when it is connected

    def __init__(self, layout: Layout) -> None:
        self._layout, self._frames = layout, Frames()
        self._last = 0
        self._loop = asyncio.get_running_loop()
        self.waiting: dict[int, asyncio.Future[Score]] = {}
        self.hello: asyncio.Future[Hello] = self._loop.create_future()
        self.lost = False

    async def score(self, users: UserInputs, candidates: np.ndarray, left_s: float, low: bool) -> Score:
        self._last = number = self._last % 2**31 + 1
        future = self.waiting[number] = self._loop.create_future()
        self._transport.write(frame(SCORE, number, self._layout.request(users, candidates, left_s, low)))
        try:
            score: Score = await future
        except asyncio.CancelledError:
            if not self.lost:
                self._transport.write(frame(CANCEL, number))
            raise
        finally:
            self.waiting.pop(number, None)
        return score

    def close(self) -> None:
        if "_transport" in vars(self):
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        for kind, number, body in self._frames.feed(data):
            if kind == HELLO:
                self.hello.set_result(Hello.from_bytes(body))
            elif (future := self.waiting.get(number)) is not None and not future.done():
                self._resolve(future, kind, body)

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        reason = EngineLostError("the engine process ended")
        for future in self.waiting.values():
            if not future.done():
                future.set_exception(reason)
        if not self.hello.done():
            self.hello.set_exception(reason)

    def _resolve(self, future: asyncio.Future[Score], kind: int, body: bytes) -> None:
        if kind == SCORED:
            future.set_result(self._layout.parse_answer(body))
        elif kind == REFUSED:
            future.set_exception(ScorerClosedError(body.decode()))
        elif kind == LATE:
            future.set_exception(TooLateError(body.decode()))
        elif kind == SPOILT:
            future.set_exception(NotProbabilitiesError(body.decode()))
        else:
            future.set_exception(RuntimeError(body.decode()))
