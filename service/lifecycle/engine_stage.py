"""An engine process' part of a change: each model listens on a socket of its own, so a worker knows which it asks."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from model.artifact.engine import Engine
from service.engines import Engines
from service.lifecycle.failure import one_line
from service.lifecycle.shelf import Shelf
from service.scoring.process import Hello, ScorerServer
from service.scoring.scorer import LocalScorer
from service.scoring.wire import Layout
from service.tasks import (
    Cancel,
    EngineTask,
    Heard,
    LocalModel,
    News,
    Order,
    Prepare,
    Prepared,
    Switch,
    Switched,
    Told,
    engine_socket,
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class _Listening:
    """A model that answers on a socket, once it was started."""

    scorer: LocalScorer
    server: ScorerServer
    socket: Path

    async def start(self) -> None:
        self.socket.unlink(missing_ok=True)  # of the process that was here before
        await self.server.start(self.socket)

    async def close(self) -> None:
        await self.server.close()
        await self.scorer.close()


class EngineStage:
    """For one event loop."""

    def __init__(self, task: EngineTask) -> None:
        """Loads what is to serve; what `Engine.load` raises."""
        self._task, self._engines = task, Engines(task.settings, task.number)
        loaded = {model.version: self._engines.open(model) for model in task.order.models.values()}
        engine, _ = loaded[task.order.model.version]
        self._news = News(model_version=engine.version, provider=engine.provider)
        first = {version: self._listening(version, *one) for version, one in loaded.items()}
        self._shelf = Shelf(self._open, _Listening.close, first)
        self._order, self._previous, self._next = task.order, task.order, task.order

    async def start(self) -> News:
        """Warm up and listen; what to tell the parent."""
        for version in self._order.models:
            await self._shelf[version].scorer.warm_up()
            await self._shelf[version].start()
        return self._news

    async def answer(self, told: Told) -> Heard | None:
        """Do what the parent asks, and what is to be told it."""
        match told:
            case Prepare(order):
                return await self._prepare(order)
            case Switch(number):
                self._previous, self._order = self._order, self._next
                await self._keep()
                return Switched(number, self._order.model.version)
            case Cancel():
                await self._keep()
        return None

    def busy_s(self) -> float:
        """How long the batch that has run longest has been running; 0 when none runs."""
        versions = self._shelf.versions()
        return max((self._shelf[version].scorer.busy_s() for version in versions), default=0.0)

    async def close(self) -> None:
        await self._shelf.keep(())

    async def _prepare(self, order: Order) -> Prepared:
        try:
            await self._shelf.load(order)
        except Exception as error:  # whatever it is: what serves goes on
            _log.warning("order %d cannot be served: %s", order.number, error)
            return Prepared(order.number, one_line(error))
        self._next = order
        return Prepared(order.number)

    async def _open(self, model: LocalModel) -> _Listening:
        listening = self._listening(model.version, *await self._engines.open_beside(model))
        await listening.start()
        return listening

    def _listening(self, version: str, engine: Engine, scorer: LocalScorer) -> _Listening:
        server = ScorerServer(scorer, Layout(engine.view), Hello(engine.version, engine.provider))
        return _Listening(scorer, server, engine_socket(self._task.folder, self._task.number, version))

    async def _keep(self) -> None:
        """What serves, and what did before."""
        previous = self._previous.models if self._task.lifecycle.keep_previous else {}
        await self._shelf.keep([*self._order.models, *previous])
