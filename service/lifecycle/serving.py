"""What answers a request: one model with its scorer and formula, taken once when the request begins.

Everything here belongs to one event loop, so counting needs no lock.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from hashlib import blake2b

from model.artifact.formula import Formula
from service.engines import Served
from service.lifecycle.shadow import Shadow
from service.scoring.scorer import NotProbabilitiesError, Scorer

CONTROL, SPLIT = "control", "split"  # arms

_DRAWS = 2**64
_FAULT = 500  # status


class Uses:
    """Requests on something: how many are under way, and what became of the others; a context for each."""

    __slots__ = ("_idle", "count", "faults", "requests", "spoilt")

    def __init__(self) -> None:
        self.count = 0  # under way
        self.requests = 0  # that have ended
        self.faults = 0  # of these, that failed for no fault of their own
        self.spoilt = 0  # of these, for which the model gave no probabilities
        self._idle: asyncio.Event | None = None  # made by who waits, so that a request pays for counting only

    def __enter__(self) -> None:
        self.count += 1

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.count -= 1
        self.requests += 1
        if error is not None:
            self._note(error)
        if self._idle is not None and not self.count:
            self._idle.set()

    def _note(self, error: BaseException) -> None:
        """Errors with another status than 500 are the client's, or the load's."""
        if isinstance(error, Exception) and getattr(error, "status", _FAULT) == _FAULT:
            self.faults += 1
            self.spoilt += isinstance(error, NotProbabilitiesError) or isinstance(
                error.__cause__, NotProbabilitiesError
            )

    async def none_left(self) -> None:
        """Until the last has ended.  New ones may begin: whoever waits has seen to it that none does."""
        while self.count:
            if self._idle is None:
                self._idle = asyncio.Event()
            self._idle.clear()
            await self._idle.wait()


@dataclass(frozen=True, eq=False)
class Serving:
    """A request reads it once and keeps it to its end, so no answer mixes two models."""

    model: Served
    scorer: Scorer
    formula: Formula
    arm: str = ""  # CONTROL or SPLIT while users are split
    number: int = 0  # of the pointer that asked for it
    uses: Uses = field(default_factory=Uses, repr=False)

    def use(self) -> Uses:
        """`with serving.use():` around a request: it is not closed before."""
        return self.uses


@dataclass(frozen=True, eq=False)
class Split:
    """Users of whom another model answers: the same users as long as the salt is the same."""

    serving: Serving
    share: float  # of users, 0 to 1
    salt: str

    def has(self, user_id: int) -> bool:
        digest = blake2b(user_id.to_bytes(8, "little", signed=True), digest_size=8, key=self.salt.encode()[:64])
        return int.from_bytes(digest.digest(), "little") < self.share * _DRAWS


class ServingSet:
    """What this worker answers with now."""

    def __init__(self, first: Serving, split: Split | None = None, shadow: Shadow | None = None) -> None:
        self._current, self._split = first, split
        self.shadow = shadow  # to which requests are offered when they have been answered

    def current(self) -> Serving:
        """Of most users; of all while nothing is split."""
        return self._current

    def choose(self, user_id: int) -> Serving:
        """Of this user."""
        split = self._split
        return self._current if split is None or not split.has(user_id) else split.serving

    def all(self) -> list[Serving]:
        return [self._current] if self._split is None else [self._current, self._split.serving]

    def switch(self, current: Serving, split: Split | None = None, shadow: Shadow | None = None) -> list[Serving]:
        """From the next request on; those that were replaced, on which requests may still be under way."""
        replaced = self.all()
        self._current, self._split, self.shadow = current, split, shadow
        return [serving for serving in replaced if serving not in self.all()]
