"""Where rankings enter the queue of a worker, or are refused before they cost anything; and their deadline."""

from __future__ import annotations

import time
from types import TracebackType
from typing import NoReturn, Self

from service.admission.admission import Admission, Limits, Refusal, Ticket
from service.admission.cost import CostModel
from service.admission.guess import guess_candidates
from service.admission.metrics import count_dropped, count_refused, show_queue
from service.ask import Ask
from service.errors import DeadlineExceededError, KeyBusyError, OverloadedError
from service.scoring.executors import TooLateError
from service.scoring.scorer import USER_TILES
from service.settings import Settings

_BATCHES = 2  # of each executor, one that runs and one that waits, for which nobody is refused


class Entrance:
    """Of one worker, for its event loop."""

    def __init__(self, settings: Settings, costs: CostModel, batch_tiles: int, executors: int) -> None:
        """costs: of the model that answers;  batch_tiles: of one of the executors."""
        limits = Limits(
            queue_tiles=settings.queue_tiles,
            burst_s=settings.burst_ms / 1000,
            queue_s=settings.queue_ms / 1000,
            floor_tiles=_BATCHES * executors * batch_tiles,
            low_share=settings.low_share,
            user_tiles=USER_TILES,
        )
        self._door, self._tile, self._default_ms = Admission(costs, limits), settings.tile, settings.deadline_ms

    def enter(self, ask: Ask, costs: CostModel) -> Visit:
        """costs: of the model that answers now.  OverloadedError, KeyBusyError, DeadlineExceededError."""
        now = time.monotonic()
        door, caller = self._door, ask.caller
        door.costs = costs
        deadline_at = now + (self._default_ms if ask.deadline_ms is None else ask.deadline_ms) / 1000
        tiles = -(-guess_candidates(ask.body) // self._tile)
        found = door.admit(tiles, 1, ask.priority, caller.id or None, deadline_at, now, caller.limit)
        if isinstance(found, Refusal):
            _refuse(found, ask, deadline_at - now)
        return Visit(ask, found, costs, now, deadline_at, self._tile)

    def show(self) -> None:
        """What is in the queue, in the metrics: now and then, because a gauge costs more than to admit."""
        show_queue(self._door)


class Visit:
    """A request that has entered; a context, which it leaves with its answer or an error."""

    def __init__(
        self, ask: Ask, ticket: Ticket, costs: CostModel, entered: float, deadline_at: float, tile: int
    ) -> None:
        self.deadline_at = deadline_at  # of time.monotonic
        self.low = ask.priority == "low"
        self.scored = False
        self._ask, self._ticket, self._costs, self._entered, self._tile = ask, ticket, costs, entered, tile

    def is_for(self, candidates: int, deadline_ms: int | None) -> None:
        """What the body says.  DeadlineExceededError when there is no time for it."""
        self._ticket.resize(-(-candidates // self._tile), 1)
        if deadline_ms is not None:
            self.deadline_at = min(self.deadline_at, self._entered + deadline_ms / 1000)
        self._check("queue")

    def has_read(self) -> None:
        """The store has answered, or did not.  DeadlineExceededError when no time is left to score."""
        self._check("store")

    def store_s(self) -> float:
        """What the store may take: half of what is left, so that an answer without it is still in time."""
        return (self.deadline_at - time.monotonic()) / 2

    def took(self, seconds: float) -> None:
        """The event loop for this request, beside the towers."""
        self._costs.observe_rest(1, seconds)

    def was_late(self, error: TooLateError) -> NoReturn:
        count_dropped(1)
        raise DeadlineExceededError("queue", str(error)) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ticket.release(time.monotonic(), self.scored)

    def _check(self, stage: str) -> None:
        now = time.monotonic()
        late = self._ticket.check(self._costs, self.deadline_at, now)
        if late is not None:
            count_refused("deadline", self._ask.priority)
            raise DeadlineExceededError(stage, late.detail)


def _refuse(refusal: Refusal, ask: Ask, left_s: float) -> NoReturn:
    count_refused(refusal.reason, ask.priority)
    if refusal.reason == "queue":
        raise OverloadedError(refusal.detail, refusal.retry_after_s)
    if refusal.reason == "key":
        raise KeyBusyError(refusal.detail, refusal.retry_after_s)
    raise DeadlineExceededError("queue" if refusal.retry_after_s > left_s else "inference", refusal.detail)
