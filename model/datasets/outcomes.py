"""What the simulated users do with what they are shown: the probability of each act, the acts, and how long they watch.

Log odds are sums of what is planted, so a probability is known exactly.  How long a view lasts that is
no effective view (live), or that is clicked (video), follows a slow swing of attention, and a passion adds to it.
Letters: V views, A acts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from feature_store.schema import DOMAINS, Domain
from model.datasets.logs import TASK_ACTS
from model.datasets.world import Planted

ACTS = ("click", "effective_view", "long_view", "like", "comment", "gift", "follow", "share")
RATES: dict[str, tuple[float, float]] = {  # of views of the video domain, of the live domain
    "click": (0.90, 0.25),
    "effective_view": (0.62, 0.16),
    "long_view": (0.34, 0.08),
    "like": (0.030, 0.025),
    "comment": (0.006, 0.012),
    "gift": (0.0, 0.008),
    "follow": (0.005, 0.005),
    "share": (0.006, 0.003),
}
"""Share of views with each act.  The paper's Figure 1a has no numbers: these keep its order and its sparsity."""

STRONG_ACTS = ACTS[3:]
DENSE = 5.0  # how much more frequent strong acts are without sparsity
ACTED_BEFORE = {"effective_view": "click"} | dict.fromkeys(ACTS[2:], "effective_view")

DRIVERS = ("interest", "memory", "community", "passion", "live_passion", "swing", "quality", "page", "evening")
FOLLOWED = 5  # of them, from the first: what users of a group follow more or less
_PLANTED_IN = {
    "interest": "interests",
    "memory": "memory",
    "community": "communities",
    "passion": "video_bursts",
    "live_passion": "live_bursts",
    "swing": "live_bursts",
    "quality": "context",
    "page": "context",
    "evening": "context",
}
LIVE_WEIGHTS: dict[str, tuple[float, ...]] = {  # growth of the log odds with each driver
    "click": (0.8, 4.2, 1.8, 0.5, 0.3, 0.0, 0.2, 0.5, 0.2),
    "effective_view": (0.2, 0.8, 0.4, 0.3, 0.3, 0.0, 0.1, 0.2, 0.1),
    "long_view": (0.0, 0.0, 0.0, 3.4, 5.0, 1.5, 0.1, 0.2, 0.1),
    "like": (0.0, 0.0, 0.2, 3.0, 4.4, 1.5, 0.1, 0.0, 0.0),
    "comment": (0.0, 0.0, 0.2, 2.6, 2.6, 1.0, 0.1, 0.2, 0.0),
    "gift": (0.0, 0.0, 0.4, 2.6, 2.6, 1.0, 0.1, 0.2, 0.0),
    "follow": (0.3, 0.5, 0.8, 1.0, 1.0, 0.0, 0.2, 0.0, 0.0),
    "share": (0.3, 0.4, 0.4, 1.0, 1.0, 0.0, 0.2, 0.0, 0.0),
}
VIDEO_WEIGHTS: dict[str, tuple[float, float]] = {  # interest, passion
    "click": (0.5, 0.0),
    "effective_view": (0.0, 0.0),  # this and the next are told by the time watched
    "long_view": (0.0, 0.0),
    "like": (0.2, 0.5),
    "comment": (0.2, 0.5),
    "gift": (0.0, 0.0),
    "follow": (0.2, 0.2),
    "share": (0.2, 0.2),
}
PAGE_EFFECT = np.array([0.0, 0.5, 0.9, -0.4], np.float32)
LEVELS_MS: dict[Domain, tuple[int, int]] = {"video": (3_000, 18_000), "live": (10_000, 60_000)}  # effective, long view
LONGEST_MS = 20 * 60_000
SHORTEST_MS = 150
GLANCE_MS = 1_000  # the longest that a video is watched without a click


@dataclass(frozen=True)
class Watching:
    """The logarithm of the ms watched: centre + swing * s + passion * whether it is one + noise * N(0, 1).

    s, from -1 to 1, is where the user's attention stands.
    """

    centre: float
    swing: float
    passion: float
    noise: float

    @classmethod
    def of(cls, domain: Domain, planted: Planted) -> Watching:
        """Without passions nothing but noise is left, of the same spread."""
        law = WATCHING[domain]
        if planted.video_bursts if domain == "video" else planted.live_bursts:
            return law
        spread = (law.swing**2 / 2 + law.passion**2 / 4 + law.noise**2) ** 0.5
        return cls(law.centre + law.passion / 2, 0.0, 0.0, spread)

    def draw(self, swing: np.ndarray, passion: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """ms, of views [V].  [V] float32"""
        logs = self.noise * rng.standard_normal(len(swing), np.float32)
        logs += np.float32(self.centre) + np.float32(self.swing) * swing + np.float32(self.passion) * passion
        times: np.ndarray = np.exp(logs)
        return times


WATCHING: dict[Domain, Watching] = {
    "video": Watching(centre=8.7, swing=2.0, passion=0.7, noise=0.25),  # of clicked videos
    "live": Watching(centre=7.15, swing=1.5, passion=0.6, noise=0.15),  # of live rooms before an effective view
}


def rates(planted: Planted) -> dict[str, tuple[float, float]]:
    """Share of views with each act, video and live, under the switches."""
    factor = 1.0 if planted.sparsity else DENSE
    return {act: (v * factor, o * factor) if act in STRONG_ACTS else (v, o) for act, (v, o) in RATES.items()}


def live_weights(planted: Planted) -> np.ndarray:
    """[A, drivers] float32, zero where a structure is switched off."""
    switches = planted.as_dict()
    on = np.array([switches[_PLANTED_IN[driver]] for driver in DRIVERS], np.float32)
    return np.array([LIVE_WEIGHTS[act] for act in ACTS], np.float32) * on


def video_weights(planted: Planted) -> np.ndarray:
    """[A, 2] float32"""
    on = np.array([planted.interests, planted.video_bursts], np.float32)
    return np.array([VIDEO_WEIGHTS[act] for act in ACTS], np.float32) * on


@dataclass(frozen=True)
class Odds:
    """The log odds of every act, given the act before it, where no driver speaks; by domain [A] float32."""

    video: np.ndarray
    live: np.ndarray

    @classmethod
    def fitted(cls, planted: Planted, video: np.ndarray, live: np.ndarray) -> Odds:
        """Odds that make acts as frequent as `rates` says: over sample views, from their drivers' log odds [V, A]."""
        goals = rates(planted)
        logits = {"video": video, "live": live}
        found = {d: _fit(logits[d], [goals[act][i] for act in ACTS]) for i, d in enumerate(DOMAINS)}
        return cls(**found)

    def as_dict(self) -> dict[str, dict[str, float]]:
        return {d: dict(zip(ACTS, getattr(self, d).tolist(), strict=True)) for d in DOMAINS}

    @classmethod
    def of_dict(cls, record: dict[str, dict[str, float]]) -> Odds:
        return cls(**{d: np.array([record[d][act] for act in ACTS], np.float32) for d in DOMAINS})


def _fit(logits: np.ndarray, goals: list[float]) -> np.ndarray:
    """The log odds to add to each act [A], so that its unconditional probability has the mean of its goal."""
    odds = np.zeros(len(ACTS), np.float32)
    reached = {"": np.ones(len(logits))}  # probability of the act before, of each view
    for index, (act, goal) in enumerate(zip(ACTS, goals, strict=True)):
        before = reached[ACTED_BEFORE.get(act, "")]
        odds[index] = _intercept(logits[:, index], before, goal)
        reached[act] = before * sigmoid(logits[:, index] + odds[index])
    return odds


def _intercept(logits: np.ndarray, before: np.ndarray, goal: float) -> float:
    """By bisection."""
    low, high = -40.0, 40.0
    for _ in range(50):
        middle = (low + high) / 2
        enough = (before * sigmoid(logits + middle)).mean() >= goal
        low, high = (low, middle) if enough else (middle, high)
    return low if goal == 0 else high


def sigmoid(x: np.ndarray) -> np.ndarray:
    probabilities: np.ndarray = 1 / (1 + np.exp(-x))
    return probabilities


def live_logits(weights: np.ndarray, drivers: dict[str, np.ndarray], strength: np.ndarray) -> np.ndarray:
    """What the drivers [V] of live views add to the log odds of every act.  [V, A] float32

    strength [V] is how much the user follows the first FOLLOWED drivers.
    """
    stack = np.stack([drivers[name] for name in DRIVERS], axis=1).astype(np.float32)  # [V, drivers]
    stack[:, :FOLLOWED] *= strength[:, None]
    logits: np.ndarray = stack @ weights.T
    return logits


def video_combinations(weights: np.ndarray) -> np.ndarray:
    """Log odds of every act for each of the 4 combinations interest + 2 passion.  [4, A] float32"""
    drivers = ((np.arange(4)[:, None] >> np.arange(2)) & 1).astype(np.float32)  # [4, 2]
    logits: np.ndarray = drivers @ weights.T
    return logits


def unconditional(given: np.ndarray) -> np.ndarray:
    """The probability of every task's act: its own, given the act it needs, times that act's.  [V, A] -> [V, tasks]"""
    reached: dict[str, np.ndarray] = {}
    for index, act in enumerate(ACTS):
        before = ACTED_BEFORE.get(act)
        reached[act] = given[:, index] if before is None else given[:, index] * reached[before]
    return np.stack([reached[act] for act in TASK_ACTS.values()], axis=1)


def live_times(done: dict[str, np.ndarray], before: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """ms watched of live views, true to the acts.  before [V]: of what is no effective view.  [V] int32"""
    effective, long = LEVELS_MS["live"]
    play = np.clip(before, SHORTEST_MS, effective - 1)
    watched = np.flatnonzero(done["effective_view"])
    share = rng.random(len(watched), np.float32)
    play[watched] = effective * np.exp(share * np.float32(np.log(long / effective)))
    stayed = np.flatnonzero(done["long_view"])
    play[stayed] = np.minimum(long * (1 + rng.standard_exponential(len(stayed), np.float32)), LONGEST_MS)
    whole: np.ndarray = play.astype(np.int32)
    return np.where(done["effective_view"] & ~done["long_view"], np.clip(whole, effective, long - 1), whole)


def video_times(clicked: np.ndarray, times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """ms watched of videos: `times` of what is clicked, a glance of the rest.  [V] int32"""
    glances = SHORTEST_MS + (GLANCE_MS - SHORTEST_MS) * rng.random(len(times), np.float32)
    play: np.ndarray = np.where(clicked, np.clip(times, SHORTEST_MS, LONGEST_MS), glances).astype(np.int32)
    return play
