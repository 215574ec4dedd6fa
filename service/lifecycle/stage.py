"""A worker's part of a change: prepare beside what serves, switch, let the old go when its last request is answered."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from model.artifact.formula import Formula
from service.engines import Loaded, Served
from service.lifecycle.failure import one_line
from service.lifecycle.pulses import Outcomes
from service.lifecycle.serving import CONTROL, SPLIT, Serving, ServingSet, Split
from service.lifecycle.shadow import Shadow
from service.lifecycle.shelf import Shelf
from service.tasks import Cancel, Heard, LocalModel, Order, Prepare, Prepared, Switch, Switched, Told

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cast:
    """What answers under one order."""

    order: Order
    current: Serving
    split: Split | None
    shadow: Shadow | None

    @classmethod
    def of(cls, order: Order, loaded: Callable[[str], Loaded], check: Callable[[Served, Formula], None]) -> Cast:
        """check: raises when a model with this formula cannot serve here."""

        def serving(model: LocalModel, arm: str) -> Serving:
            one = loaded(model.version)
            check(one.model, order.formula)
            return Serving(one.model, one.scorer, order.formula, arm, order.number)

        shadow = None if order.shadow is None else Shadow(loaded(order.shadow.model.version), order.shadow.share)
        if order.split is None:
            return cls(order, serving(order.model, ""), None, shadow)
        other = Split(serving(order.split.model, SPLIT), order.split.share, order.split.salt)
        return cls(order, serving(order.model, CONTROL), other, shadow)


class Stage:
    """For one event loop."""

    def __init__(
        self,
        cast: Cast,
        shelf: Shelf[Loaded],
        check: Callable[[Served, Formula], None],
        keep_previous: bool,
        on_switch: Callable[[list[Serving]], None] = lambda replaced: None,
    ) -> None:
        """on_switch: called with what was replaced, when requests no longer begin on it."""
        self.serving = ServingSet(cast.current, cast.split, cast.shadow)
        self._cast, self._shelf, self._check = cast, shelf, check
        self._keep_previous, self._on_switch = keep_previous, on_switch
        self._previous: Order | None = None
        self._next: Cast | None = None

    @property
    def order(self) -> Order:
        """What serves."""
        return self._cast.order

    def outcomes(self) -> list[Outcomes]:
        """Of requests that have been answered: by the model of most users, and by that of a split if there is one."""
        uses = [serving.uses for serving in self.serving.all()]
        return [Outcomes(self.order.number, use.requests, use.faults, use.spoilt) for use in uses]

    async def answer(self, told: Told) -> Heard | None:
        """Do what the parent asks, and what is to be told it."""
        match told:
            case Prepare(order):
                return await self._prepare(order)
            case Switch(number):
                await self._switch(number)
                return Switched(number, self.order.model.version)
            case Cancel():
                self._next = None
                await self._keep()
        return None

    async def close(self) -> None:
        """Everything that is loaded, after the last answer."""
        if self._cast.shadow is not None:
            await self._cast.shadow.close()
        await self._shelf.keep(())

    async def _prepare(self, order: Order) -> Prepared:
        try:
            await self._shelf.load(order)
            self._next = Cast.of(order, self._shelf.__getitem__, self._check)
        except Exception as error:  # whatever it is: what serves goes on
            _log.warning("order %d cannot be served: %s", order.number, error)
            await self._keep()
            return Prepared(order.number, one_line(error))
        return Prepared(order.number)

    async def _switch(self, number: int) -> None:
        assert self._next is not None
        assert self._next.order.number == number
        before, self._cast, self._next = self._cast, self._next, None
        self._previous = before.order
        replaced = self.serving.switch(self._cast.current, self._cast.split, self._cast.shadow)
        self._on_switch(replaced)
        for serving in replaced:
            await serving.uses.none_left()
        if before.shadow is not None:
            await before.shadow.close()
        await self._keep()

    async def _keep(self) -> None:
        """What serves, and what did before."""
        kept = list(self._cast.order.models)
        if self._keep_previous and self._previous is not None:
            kept += self._previous.models
        await self._shelf.keep(kept)
