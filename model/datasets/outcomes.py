"""What the simulated users do with what they are shown: which acts, and how long they watch.

Letters: V views.
"""

from __future__ import annotations

import numpy as np

from feature_store.schema import DOMAINS, Domain
from model.datasets.world import World

Views = dict[str, np.ndarray]
Odds = dict[tuple[Domain, str], float]
"""The log odds of each act that make it as frequent as it should be; found on the first day, then kept."""

RATES: dict[str, tuple[float, float]] = {  # of views of the video domain, of the live domain
    "click": (0.60, 0.25),
    "effective_view": (0.42, 0.16),
    "long_view": (0.24, 0.08),
    "like": (0.030, 0.025),
    "comment": (0.006, 0.012),
    "gift": (0.0, 0.006),
    "follow": (0.005, 0.005),
    "share": (0.006, 0.003),
}
"""Share of views with each act.  The paper's Figure 1a has no numbers: these keep its order and its sparsity."""

ACTED_BEFORE = {"effective_view": "click", "long_view": "effective_view"}  # later acts need an effective view
DRIVERS = {  # growth of the log odds with: fit of interests, burst, favourite, quality, mood, page and hour
    "click": (0.9, 1.2, 1.2, 0.4, 0.3, 1.0),
    "effective_view": (0.7, 0.8, 0.6, 0.3, 0.2, 0.3),
    "long_view": (0.9, 1.0, 0.8, 0.3, 0.2, 0.3),
    "like": (0.8, 2.4, 2.0, 0.2, 0.6, 0.0),
    "comment": (0.7, 2.0, 2.2, 0.2, 0.8, 0.2),
    "gift": (0.7, 2.6, 2.6, 0.2, 0.8, 0.2),
    "follow": (0.9, 1.8, 1.0, 0.5, 0.4, 0.0),
    "share": (0.8, 1.8, 0.8, 0.4, 0.4, 0.0),
}
PAGE_EFFECT = np.array([0.0, 0.5, 0.9, -0.4])  # on the log odds
EVENING_EFFECT = 0.3  # of the log odds at 21 h, against 9 h
LEVELS_MS: dict[Domain, tuple[int, int]] = {"video": (3_000, 18_000), "live": (10_000, 60_000)}  # effective, long view
LONGEST_MS = 3_600_000


def acts(world: World, views: Views, odds: Odds, rng: np.random.Generator) -> Views:
    """Which acts each view has.  [V] bool each; what `odds` does not hold yet is put in."""
    drivers = _drivers(world, views)
    done: Views = {}
    for name, weights in DRIVERS.items():
        before = done.get(ACTED_BEFORE.get(name, "effective_view"), np.ones(len(drivers), bool))
        done[name] = np.zeros(len(drivers), bool)
        for domain, rate in zip(DOMAINS, RATES[name], strict=True):
            ours = views["live"] == (domain == "live")
            able = np.flatnonzero(ours & before)
            logits = drivers[able] @ np.array(weights)
            if (domain, name) not in odds:
                odds[domain, name] = _intercept(logits, rate * ours.sum() / max(len(able), 1))
            done[name][able] = rng.random(len(able)) < _sigmoid(logits + odds[domain, name])
    return done


def _drivers(world: World, views: Views) -> np.ndarray:
    """[V, 6], in the order of DRIVERS."""
    user, author = views["user"], views["author"]
    return np.stack(
        [
            world.affinity(user, author, views["tag"]),
            world.heat(user, views["tag"], views["time"]),
            (world.favourites[user] == author[:, None]).any(axis=1),
            world.quality[author],
            world.mood[user],
            PAGE_EFFECT[views["page"]] + EVENING_EFFECT * np.cos((views["hour"] - 21) / 12 * np.pi),
        ],
        axis=1,
    )


def _intercept(logits: np.ndarray, share: float) -> float:
    """What to add to `logits` so that their probabilities have the mean `share`; by bisection."""
    if share <= 0:
        return -np.inf
    low, high = -40.0, 40.0
    for _ in range(40):
        middle = (low + high) / 2
        enough = len(logits) == 0 or _sigmoid(logits + middle).mean() >= share
        low, high = (low, middle) if enough else (middle, high)
    return high


def _sigmoid(x: np.ndarray) -> np.ndarray:
    probabilities: np.ndarray = 1 / (1 + np.exp(-x))
    return probabilities


def play_times(views: Views, rng: np.random.Generator) -> np.ndarray:
    """ms watched, true to the acts: below, between or above the levels of an effective and a long view.  [V] int64"""
    effective, long = (
        np.where(views["live"], *level) for level in zip(LEVELS_MS["live"], LEVELS_MS["video"], strict=True)
    )
    share = rng.random(len(effective))
    passed = np.minimum(rng.exponential(700, len(effective)), 2_000)  # not clicked: a glance
    glance = np.where(views["click"], 500 + share * (effective - 500), passed)
    watched = effective * (long / effective) ** share
    stayed = np.minimum(long * (1 + rng.lognormal(-0.5, 0.9, len(long))), LONGEST_MS)
    play = np.where(views["long_view"], stayed, np.where(views["effective_view"], watched, glance))
    return play.astype(np.int64)
