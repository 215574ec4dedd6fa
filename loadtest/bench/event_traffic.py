"""The events that a bench sends, made from a plan: the same in the process that sends them and in the one that checks.

A view begins, is acted on and ends in three requests, so that its record is joined from three entries of the log.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

Event = dict[str, Any]
"""As in POST /events."""

VIEWS = 8  # that begin in one request
EVENTS = 3 * VIEWS + 1  # of one request: begins, acts and ends of views, and an update
LATER = 5  # requests between the begin and the act of a view, and between the act and the end
_VIEWS_A_USER = 4  # about; so few that a store truncates none of them, in progress or ended
_FIRST_VIEW, _FIRST_USER, _FIRST_AUTHOR, _FIRST_LIVE = 2**60, 2**61, 2**60 + 2**59, 2**58
_AUTHORS = 50
_ACTS = ("click", "like", "comment", "gift", "follow", "share")


@dataclass(frozen=True)
class Traffic:
    """Requests 0 .. requests-1."""

    seed: int
    start_ms: int  # when the first view begins, ms since 1970; its view_id follows in time
    requests: int
    known_users: tuple[int, ...] = ()  # of the store; others are new to it

    @property
    def users(self) -> int:
        """How many have views; odd, so that each has views of both domains."""
        return max(1, self.requests * VIEWS // _VIEWS_A_USER) | 1

    def user(self, number: int) -> int:
        """An id; numbers repeat after `users`."""
        at = number % self.users
        return self.known_users[at] if at < len(self.known_users) else _FIRST_USER + at

    def request(self, number: int) -> list[Event]:
        """The events of one request.  The first ones have fewer: no view ends before the first."""
        events = [_update(self, number)]
        for view in range(number * VIEWS, (number + 1) * VIEWS):
            for part in range(3):
                shown = view - part * LATER * VIEWS
                if shown >= 0:
                    events.append(_view_event(self, shown, part))
        return events


def _update(traffic: Traffic, number: int) -> Event:
    """What is new about a user or an author; later ones replace earlier ones."""
    chosen, at = number // 2, traffic.start_ms + number
    if number % 2:
        author = chosen % _AUTHORS
        ids = {"author_id": _FIRST_AUTHOR + author, "live_id": _FIRST_LIVE + author}
        return {"type": "author", **ids, "updated_at": at, "tag": number % 100, "cluster": number % 7}
    return {"type": "user", "user_id": traffic.user(chosen), "updated_at": at, "activity_group": number % 5}


def _view_event(traffic: Traffic, view: int, part: int) -> Event:
    """part: 0 the begin, 1 an act, 2 the end."""
    drawn = random.Random(f"{traffic.seed} {view} {part}")
    start = traffic.start_ms + view
    event: Event = {"type": ("live_view", "video_view")[view % 2], "user_id": traffic.user(view)}
    event |= {"view_id": _FIRST_VIEW + view, "event_time": start}
    if part == 0:
        author = _FIRST_AUTHOR + drawn.randrange(_AUTHORS)
        return event | {"author_id": author, "page": drawn.randrange(3), "tag": drawn.randrange(100)}
    event["behaviours"] = drawn.sample(_ACTS, drawn.randrange(1, 3))
    if part == 1:
        return event | {"play_time": drawn.randrange(1000)}
    played = drawn.randrange(1000, 60_000)
    return event | {"known_at": start + played, "play_time": played}
