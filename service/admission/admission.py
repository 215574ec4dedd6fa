"""At the door: a request enters, or is told at once why not.  Pure: no threads, no clock.

The queue is all that has entered and has not left.  Its cost is in tiles: those of the candidates, and `user_tiles` for
each run of the user tower.  How long it takes, the cost model says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from service.admission.cost import CostModel

Priority = Literal["high", "low"]
Reason = Literal["deadline", "queue", "key"]

_BACKLOG = 4.0  # of the burst: so long after an overload the queue stays short


@dataclass(frozen=True)
class Limits:
    """How much may wait.  A request that finds nobody is never refused for its size."""

    queue_tiles: int = 1024  # greatest cost of the queue
    burst_s: float = 0.1  # a request enters while those ahead of it take no longer
    queue_s: float = 0.015  # the same in overload: with all that came, refused or not, it would be more than `burst_s`
    floor_tiles: int = 32  # below this cost nobody is refused for those: a batch for each executor keeps all at work
    low_share: float = 0.25  # of each of these that requests of low priority may fill
    user_tiles: int = 4  # cost of a run of the user tower, as the batch policy has it
    key_limit: int | None = None  # requests of one key at once, where the caller names no limit; None: any number

    def __post_init__(self) -> None:
        for name in ("queue_tiles", "burst_s", "queue_s", "floor_tiles", "user_tiles"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: must be at least 0, not {getattr(self, name)}")
        if not 0 <= self.low_share <= 1:
            raise ValueError(f"low_share: must be between 0 and 1, not {self.low_share}")
        if self.key_limit is not None and self.key_limit < 1:
            raise ValueError(f"key_limit: must be at least 1, not {self.key_limit}")


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that may not enter."""

    reason: Reason
    retry_after_s: float  # when there should be room, if no others come
    detail: str  # for the client


class _Line:
    """What is in the queue with one priority."""

    __slots__ = ("requests", "tiles", "users")

    def __init__(self) -> None:
        self.tiles = self.users = self.requests = 0


class _Ahead(NamedTuple):
    """What a request finds, in seconds of all lanes, without slowdown."""

    turn_s: float  # before its turn: those of low priority do not hold up the others
    all_s: float


class Ticket:
    """A request that has entered.  It counts until it is released."""

    __slots__ = ("_ahead", "_door", "_entered", "_key", "_line", "tiles", "users")

    def __init__(
        self, door: Admission, line: _Line, tiles: int, users: int, key: str | None, ahead: _Ahead, entered: float
    ) -> None:
        self._door: Admission | None = door
        self._line, self._key, self._ahead, self._entered = line, key, ahead, entered
        self.tiles, self.users = tiles, users

    def resize(self, tiles: int, users: int) -> None:
        """What it really costs, once that is known.  Nobody is refused for it."""
        if self._door is not None:
            self._line.tiles += tiles - self.tiles
            self._line.users += users - self.users
        self.tiles, self.users = tiles, users

    def check(self, costs: CostModel, deadline_at: float, now: float) -> Refusal | None:
        """Whether a deadline can be met that was read after it had entered, or of which a stage has used a part."""
        belief = costs.belief(now)
        own_s = belief * costs.finish_s(self.tiles, self.users, 0.0)
        wait_s = max(0.0, self._entered + belief * costs.slowdown * self._ahead.turn_s - now)
        return None if now + wait_s + own_s <= deadline_at else _late(wait_s, own_s, deadline_at - now)

    def release(self, now: float | None = None, done: bool = True) -> None:
        """Exactly once, when it was answered.  RuntimeError the second time.

        now: to learn from how long it took, None not to;  done: it was scored, so that is how long it takes.
        """
        door, self._door = self._door, None
        if door is None:
            raise RuntimeError("a ticket was released twice")
        self._line.tiles -= self.tiles
        self._line.users -= self.users
        self._line.requests -= 1
        door.leave(self._key)
        if now is not None:
            self._learn(door.costs, now, done)

    def _learn(self, costs: CostModel, now: float, done: bool) -> None:
        """One that was given up tells no more than that it would have taken longer."""
        work_s, taken_s = costs.work_s(self.tiles, self.users), now - self._entered
        expected_s = self._ahead.all_s + work_s
        if done or taken_s > costs.slowdown * expected_s:
            costs.observe_wait(expected_s, taken_s, work_s, now)


class Admission:
    """The bounds of the queue.  For one thread, which admits and releases."""

    def __init__(self, costs: CostModel, limits: Limits) -> None:
        self.costs, self.limits = costs, limits
        self._high, self._low = _Line(), _Line()
        self._keys: dict[str, int] = {}  # tickets of each key that has some
        self._backlog_s = self._came = 0.0  # had nobody been refused, up to _BACKLOG times `burst_s`; when that was

    def admit(
        self,
        cost_tiles: int,
        users: int,
        priority: Priority,
        key: str | None,
        deadline_at: float,
        now: float,
        key_limit: int | None = None,
    ) -> Ticket | Refusal:
        """cost_tiles: of the candidates;  users: runs of the user tower, 0 when its state is kept.

        key: of the caller, None when nobody counts them;  key_limit: its requests at once, None for the limits' own.
        """
        costs, low = self.costs, priority == "low"
        if key is not None and self._is_busy(key, key_limit):
            return _busy(self._keys[key], costs.finish_s(cost_tiles, users, 0.0))
        high_s, low_s = self._seconds(self._high), self._seconds(self._low)
        most_s = self._most_s(costs.slowdown * costs.work_s(cost_tiles, users) / costs.lanes, now)
        if not self._has_room(low, cost_tiles + users * self.limits.user_tiles, high_s, low_s, most_s):
            return _full(priority, costs.slowdown * (high_s + low_s))
        ahead = _Ahead(high_s + low_s if low else high_s, high_s + low_s)
        belief = costs.belief(now)
        wait_s = belief * costs.slowdown * ahead.turn_s
        own_s = belief * costs.finish_s(cost_tiles, users, 0.0)
        if now + wait_s + own_s > deadline_at:
            return _late(wait_s, own_s, deadline_at - now)
        return self._enter(self._low if low else self._high, cost_tiles, users, key, ahead, now)

    def queued(self, priority: Priority) -> int:
        """Cost of what is in the queue with that priority, in tiles."""
        return self._cost(self._low if priority == "low" else self._high)

    def wait_s(self) -> float:
        """Until all that is in the queue should be done."""
        return self.costs.slowdown * (self._seconds(self._high) + self._seconds(self._low))

    def leave(self, key: str | None) -> None:
        """Called by the ticket, when it is released."""
        if key is None:
            return
        left = self._keys[key] - 1
        if left:
            self._keys[key] = left
        else:
            del self._keys[key]

    def _enter(self, line: _Line, tiles: int, users: int, key: str | None, ahead: _Ahead, now: float) -> Ticket:
        line.tiles += tiles
        line.users += users
        line.requests += 1
        if key is not None:
            self._keys[key] = self._keys.get(key, 0) + 1
        return Ticket(self, line, tiles, users, key, ahead, now)

    def _is_busy(self, key: str, limit: int | None) -> bool:
        most = self.limits.key_limit if limit is None else limit
        return most is not None and self._keys.get(key, 0) >= most

    def _most_s(self, seconds: float, now: float) -> float:
        """How long a request may wait that comes now.  The queue does not tell of an overload: others were refused."""
        limits = self.limits
        backlog_s = max(0.0, self._backlog_s - max(0.0, now - self._came))
        self._backlog_s, self._came = min(backlog_s + seconds, _BACKLOG * limits.burst_s), now
        return limits.queue_s if backlog_s > limits.burst_s else limits.burst_s

    def _has_room(self, low: bool, cost: int, high_s: float, low_s: float, most_s: float) -> bool:
        high_cost, low_cost, limits = self._cost(self._high), self._cost(self._low), self.limits
        queue_cost = high_cost + low_cost
        if not self._high.requests + self._low.requests:
            return True
        if queue_cost + cost > limits.queue_tiles:
            return False
        if not low:
            return self._is_short(high_cost, high_s, 1.0, most_s)
        return (
            low_cost + cost <= limits.low_share * limits.queue_tiles
            and self._is_short(queue_cost, high_s + low_s, 1.0, most_s)
            and self._is_short(low_cost, low_s, limits.low_share, most_s)
        )

    def _is_short(self, cost: int, seconds: float, share: float, most_s: float) -> bool:
        """Whether another may stand behind these."""
        return cost < share * self.limits.floor_tiles or self.costs.slowdown * seconds <= share * most_s

    def _cost(self, line: _Line) -> int:
        return line.tiles + line.users * self.limits.user_tiles

    def _seconds(self, line: _Line) -> float:
        """Of all lanes."""
        return self.costs.work_s(line.tiles, line.users, line.requests) / self.costs.lanes


def _busy(requests: int, retry_after_s: float) -> Refusal:
    return Refusal("key", retry_after_s, f"{requests} requests of this key are under way, which is its limit")


def _full(priority: Priority, wait_s: float) -> Refusal:
    return Refusal("queue", wait_s, f"the queue has no room for a request of {priority} priority: {_ms(wait_s)} wait")


def _late(wait_s: float, own_s: float, left_s: float) -> Refusal:
    needs = f"an answer takes about {_ms(wait_s + own_s)}, {_ms(wait_s)} of it in the queue"
    return Refusal("deadline", wait_s, f"{needs}, and {_ms(max(0.0, left_s))} are left")


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"
