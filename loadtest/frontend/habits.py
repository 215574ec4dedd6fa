"""What people do with a ranking: whom they watch, for how long, what they do meanwhile, and the events of it.

The rates are assumptions of the order that live platforms have; the load is a mix of requests, not a model of taste.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from loadtest.frontend.crowd import PAGES, Visit
from loadtest.frontend.settings import Id

WATCHES = 0.6  # of rankings, after which somebody is watched
RETURNS = 0.7  # of views, after which the user ranks again
PAUSE_S = 10.0  # mean, from the end of a view to the next ranking
SHOWN = 30  # authors that a user scrolls through at most

_POSITION = 0.3  # of the authors in order, each is the one that is watched with this chance
_MEDIAN_S, _SPREAD, _LONGEST_S = 8.0, 1.5, 600.0  # log-normal time that is watched
_EFFECTIVE_S, _LONG_S = 3.0, 18.0
_ACTS = {"like": 0.04, "comment": 0.015, "gift": 0.003, "follow": 0.008, "share": 0.004}  # of effective views
_VIDEO = 0.67  # chance of one more video before the events are sent: two in the mean
_VIDEO_MEDIAN_S = 6.0


@dataclass(frozen=True)
class View:
    """A live room that is watched, and the videos that were seen beside it."""

    author: Id
    play_ms: int
    acts: tuple[str, ...]
    videos: tuple[tuple[Id, int, tuple[str, ...]], ...]  # author, ms played, acts
    returns: bool  # the user ranks again afterwards
    pause_s: float  # before that, of the user's time

    @property
    def seconds(self) -> float:
        """Of the user's time."""
        return self.play_ms / 1000


class Habits:
    """Draws views."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def view(self, shown: Sequence[Id]) -> View | None:
        """What is watched of the authors shown, the best first; None: nothing, and the visit ends."""
        if self._rng.random() >= WATCHES:
            return None
        position = int(math.log(1 - self._rng.random()) / math.log(1 - _POSITION))
        play_ms = self._play_ms(_MEDIAN_S)
        videos = tuple(self._video(shown) for _ in range(int(math.log(1 - self._rng.random()) / math.log(_VIDEO))))
        returns, pause_s = self._rng.random() < RETURNS, self._rng.expovariate(1 / PAUSE_S)
        return View(shown[min(position, len(shown) - 1)], play_ms, self._acts(play_ms), videos, returns, pause_s)

    def _video(self, authors: Sequence[Id]) -> tuple[Id, int, tuple[str, ...]]:
        play_ms = self._play_ms(_VIDEO_MEDIAN_S)
        return self._rng.choice(authors), play_ms, self._acts(play_ms)

    def _play_ms(self, median_s: float) -> int:
        return max(1, int(1000 * min(_LONGEST_S, self._rng.lognormvariate(math.log(median_s), _SPREAD))))

    def _acts(self, play_ms: int) -> tuple[str, ...]:
        acts = ["click"]
        if play_ms >= 1000 * _EFFECTIVE_S:
            acts += ["effective_view", *(act for act, share in _ACTS.items() if self._rng.random() < share)]
        return (*acts, "long_view") if play_ms >= 1000 * _LONG_S else tuple(acts)

    def events(self, visit: Visit, view: View, now_ms: int) -> list[dict[str, Any]]:
        """Events of a view that ends now, and of the videos before it, as `POST /events` takes them."""
        videos = [
            self._event("video_view", visit, author, now_ms - number, play_ms, acts)
            for number, (author, play_ms, acts) in enumerate(view.videos, 1)
        ]
        return [*videos, self._event("live_view", visit, view.author, now_ms, view.play_ms, view.acts)]

    def _event(
        self, kind: str, visit: Visit, author: Id, known_at: int, play_ms: int, acts: tuple[str, ...]
    ) -> dict[str, Any]:
        return {
            "type": kind,
            "user_id": visit.user,
            "view_id": self._rng.getrandbits(53),  # of this view alone, as good as surely
            "event_time": known_at - play_ms,
            "known_at": known_at,
            "author_id": author,
            "play_time": play_ms,
            "page": visit.page if kind == "live_view" else self._rng.randrange(PAGES),
            "behaviours": list(acts),
        }
