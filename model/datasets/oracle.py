"""An oracle for simulated data: what could be predicted of a label from the histories a ranker reads.

It knows the platform's laws (`world`, `outcomes`) but no user's hidden state, which it infers by Bayes' rule from the
same matrices that the towers read: moods by forward-backward, interests and passions of every tag by forward filtering,
passions of every cluster and communities by likelihood.  Hidden facts are taken as independent given the histories, so
it is very near the best predictor, and not above it.  The probabilities in live_truth.parquet know the hidden state:
their AUC is a bound that holds without approximation.

Letters: B samples, U requests, L events, A acts, G tags, C clusters, M communities.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from model.datasets.blocks import (
    MEMORY_VIEWS,
    SLATE,
    VIDEO_COMMUNITY,
    VIDEO_INTEREST,
)
from model.datasets.logs import TASK_ACTS
from model.datasets.outcomes import (
    ACTED_BEFORE,
    ACTS,
    DRIVERS,
    PAGE_EFFECT,
    Odds,
    glance_likelihood,
    live_logits,
    live_weights,
    sigmoid,
    unconditional,
    video_combinations,
    video_weights,
)
from model.datasets.prepared import Prepared
from model.datasets.samples import Batch, gather
from model.datasets.world import (
    CLUSTERS,
    COMMUNITIES,
    DEEP,
    FIRST_AUTHOR_ID,
    GROUP_STRENGTH,
    INTEREST_VIDEOS,
    INTERESTS,
    LIVE_PASSIONS,
    MOOD_REQUESTS,
    MOOD_SHARES,
    MOOD_VIDEOS,
    TAGS,
    Authors,
    Planted,
    community_of,
)

SIMULATION_FILE = "simulation.json"
EVENING_HOUR = 18  # the last session of a day begins at 18.5
_CHUNK = 4096  # samples at once


class OracleError(ValueError):
    """The data does not come from the simulator."""


@dataclass(frozen=True)
class Laws:
    """What the oracle knows of the platform."""

    planted: Planted
    authors: Authors
    odds: Odds
    video: np.ndarray  # [8, A] probability of each act, given the act before, by interest + 2 passion + 4 mood
    weights: np.ndarray  # [A, drivers]

    @classmethod
    def of(cls, data: Prepared) -> Laws:
        """OracleError when the folder holds no simulation.json."""
        path = data.path / SIMULATION_FILE
        if not path.is_file():
            raise OracleError(f"{data.path}: no {SIMULATION_FILE}; only simulated data has an oracle")
        record: dict[str, Any] = json.loads(path.read_text())
        planted, odds = Planted(**record["structures"]), Odds.of_dict(record["odds"])
        authors = Authors.create(record["authors"], record["days"], record["seed"])
        video = sigmoid(video_combinations(video_weights(planted)) + odds.video)
        return cls(planted, authors, odds, video, live_weights(planted))


def oracle(data: Prepared, rows: np.ndarray) -> np.ndarray:
    """The oracle's probabilities [B, tasks] float32 of the samples `rows`.  OracleError for data of another source."""
    laws = Laws.of(data)
    parts = [_predict(laws, data, gather(data, rows[i : i + _CHUNK])) for i in range(0, len(rows), _CHUNK)]
    return np.concatenate(parts) if parts else np.empty((0, len(data.view.tasks)), np.float32)


@dataclass(frozen=True)
class _History:
    """One domain's histories by column, pads masked.  [U, L] each"""

    valid: np.ndarray
    tag: np.ndarray
    author: np.ndarray  # number
    acts: np.ndarray  # [U, L, A] bool
    cluster: np.ndarray
    page: np.ndarray
    play_time: np.ndarray  # ms

    @classmethod
    def of(cls, data: Prepared, batch: Batch, domain: str) -> _History:
        matrix, length = getattr(batch.users, domain), getattr(batch.users, f"{domain}_length")
        columns = data.view.columns(domain)  # type: ignore[arg-type]
        valid = np.arange(matrix.shape[1]) < length[:, None]

        def column(name: str) -> np.ndarray:
            there = name in columns
            return np.where(valid, matrix[..., columns.index(name)], 0) if there else np.zeros_like(valid, np.int64)

        bits = [data.schema.behaviours.index(act) for act in ACTS]
        acts = (column("behaviours")[..., None] >> np.array(bits)) & 1 == 1
        author = np.maximum(column("author_id") - FIRST_AUTHOR_ID, 0)
        return cls(valid, column("tag"), author, acts, column("cluster"), column("page"), column("play_time"))


def _act_likelihood(given: np.ndarray, acts: np.ndarray) -> np.ndarray:
    """Probability of the acts of a view: given [..., A] probabilities given the act before, acts [..., A] -> [...]"""
    likelihood = np.ones(np.broadcast_shapes(given.shape, acts.shape)[:-1])
    for index, act in enumerate(ACTS):
        before = ACTED_BEFORE.get(act)
        able = True if before is None else acts[..., ACTS.index(before)]
        chance = np.where(acts[..., index], given[..., index], 1 - given[..., index])
        likelihood = likelihood * np.where(able, chance, 1.0)
    return likelihood


def _glances(history: _History) -> np.ndarray:
    """How likely the glances at what was not clicked are, calm and generous.  [U, L, 2]"""
    likely = np.stack([glance_likelihood(history.play_time, mood) for mood in (False, True)], -1)
    return np.where(history.acts[..., ACTS.index("click"), None], 1.0, likely)


def _smooth(likelihood: np.ndarray, valid: np.ndarray, redraw: float, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Moods by forward-backward: what all other steps say of each step [U, L, 2], and of the last, filtered [U].

    A step's own likelihood is left out, because it is to be weighed with what is asked of it.
    likelihood [U, L, 2].  redraw: chance between two steps that the mood is drawn anew.  share: of generous moods.
    """
    seen = np.where(valid[..., None], likelihood, 1.0)
    length, prior = seen.shape[1], np.array([1 - share, share])
    ahead, behind = np.empty_like(seen), np.ones_like(seen)
    state = np.broadcast_to(prior, (len(seen), 2))
    for t in range(length):
        ahead[:, t] = (1 - redraw) * state + redraw * prior
        state = ahead[:, t] * seen[:, t]
        state = state / state.sum(1, keepdims=True)
    for t in range(length - 2, -1, -1):
        later = behind[:, t + 1] * seen[:, t + 1]
        behind[:, t] = (1 - redraw) * later + redraw * (later * prior).sum(1, keepdims=True)
        behind[:, t] /= behind[:, t].sum(1, keepdims=True)
    both = ahead * behind
    return both / both.sum(-1, keepdims=True), state[:, 1]


def _tags(laws: Laws, video: _History) -> np.ndarray:
    """Posterior of every tag at the request: none, interest, passion.  [U, G, 3]"""
    planted = laws.planted
    states = np.array([0, 1, 3])  # as combinations of drivers
    likelihood = np.moveaxis(_act_likelihood(laws.video[:, None, None], video.acts), 0, -1)  # [U, L, 8]
    calm, generous = likelihood[..., states], likelihood[..., 4 + states]  # [U, L, 3]
    joint = np.broadcast_to(_prior(planted), calm.shape)  # of each event's tag
    posterior = np.empty((len(video.valid), TAGS, 3))
    for _ in range(2):
        by_mood = np.stack([(joint * calm).sum(-1), (joint * generous).sum(-1)], -1) * _glances(video)
        share = MOOD_SHARES["video"] * planted.video_bursts
        mood = _smooth(by_mood, video.valid, 1 / MOOD_VIDEOS, share)[0][..., 1:]
        posterior = _filter_tags(planted, video, (1 - mood) * calm + mood * generous)
        joint = np.take_along_axis(posterior, video.tag[..., None], axis=1)
    return posterior


def _prior(planted: Planted) -> np.ndarray:
    """Of a tag: none, interest, passion.  [3]"""
    interest = _at_least_one(INTERESTS, TAGS) * (planted.interests or planted.video_bursts)
    deep = DEEP * planted.video_bursts
    return np.array([1 - interest, interest * (1 - deep), interest * deep])


def _filter_tags(planted: Planted, video: _History, likelihood: np.ndarray) -> np.ndarray:
    """Forward filter over the videos for all tags.  likelihood [U, L, 3] of each event's acts -> [U, G, 3]"""
    prior = _prior(planted)
    shown = np.array([0, 1, 1]) * VIDEO_INTEREST / INTERESTS + (1 - VIDEO_INTEREST * (prior[0] < 1)) / TAGS  # [3]
    redraw = 1 / INTEREST_VIDEOS if planted.drift else 0.0
    state = np.broadcast_to(prior, (len(video.valid), TAGS, 3)).copy()
    for t in range(video.valid.shape[1]):
        moved = _drift(state, prior, redraw)
        mine = (video.tag[:, t, None] == np.arange(TAGS))[..., None]  # [U, G, 1]
        seen = moved * np.where(mine, shown * likelihood[:, t, None], 1 - shown)
        seen /= seen.sum(-1, keepdims=True)
        state = np.where(video.valid[:, t, None, None], seen, state)
    return state


def _drift(state: np.ndarray, prior: np.ndarray, redraw: float) -> np.ndarray:
    """One video later: an interest ends at the rate `redraw`, and others begin so that the prior stays.  [U, G, 3]"""
    enter = redraw * (1 - prior[0]) / prior[0]
    kinds = prior[1:] / max(1 - prior[0], 1e-12)
    none = state[..., :1]
    return np.concatenate(
        [none * (1 - enter) + redraw * (1 - none), state[..., 1:] * (1 - redraw) + enter * none * kinds], axis=-1
    )


def _at_least_one(draws: int, values: int) -> float:
    """Chance that a value is among `draws` of `values`."""
    return 1 - (1 - 1 / values) ** draws


def _communities(laws: Laws, video: _History) -> np.ndarray:
    """Posterior of the user's community.  [U, M]"""
    if not laws.planted.communities:
        return np.zeros((len(video.valid), COMMUNITIES))
    ratio = np.log(1 + VIDEO_COMMUNITY / (1 - VIDEO_COMMUNITY) * COMMUNITIES)
    own = community_of(video.author)[..., None] == np.arange(COMMUNITIES)
    score = ratio * (own & video.valid[..., None]).sum(1)  # [U, M]
    weight = np.exp(score - score.max(1, keepdims=True))
    posterior: np.ndarray = weight / weight.sum(1, keepdims=True)
    return posterior


def _predict(laws: Laws, data: Prepared, batch: Batch) -> np.ndarray:
    """[B, tasks]"""
    video, live = _History.of(data, batch, "video"), _History.of(data, batch, "live")
    tags, communities = _tags(laws, video), _communities(laws, video)
    interest = tags[..., 1] + tags[..., 2]  # [U, G]
    groups = batch.users.user[:, data.view.columns("user").index("activity_group")]
    strength = np.array(GROUP_STRENGTH)[groups] if laws.planted.groups else np.ones(len(groups))
    mood, clusters = _live_state(laws, live, tags, communities, strength)
    columns = data.view.columns("candidate")
    author = batch.candidates[:, columns.index("author_id")] - FIRST_AUTHOR_ID
    tag, cluster = (batch.candidates[:, columns.index(name)] for name in ("tag", "cluster"))
    u = batch.request
    page = batch.users.user[:, len(data.view.columns("user")) + data.view.columns("context").index("page")]
    hour = (batch.users.now + data.view.utc_offset_s * 1000) // 3_600_000 % 24
    known = {
        "quality": laws.authors.quality[author],
        "page": PAGE_EFFECT[page][u],
        "evening": (hour >= EVENING_HOUR)[u].astype(float),
        "memory": _memory(live, interest, author, u),
    }
    chances = {
        "community": communities[u, community_of(author)],
        "live_passion": clusters[u, cluster],
        "mood": mood[u],
    }
    return _expected(laws, tags[u, tag], chances, known, strength[u])


def _memory(live: _History, interest: np.ndarray, author: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Of the author's rooms in memory, the expected share on a topic of interest.  [B]"""
    recent = np.arange(live.valid.shape[1]) >= live.valid.sum(1, keepdims=True) - MEMORY_VIEWS
    same = (live.author[u] == author[:, None]) & (live.valid & recent)[u]  # [B, L]
    chance = interest[u[:, None], live.tag[u]]  # [B, L]
    share: np.ndarray = (same * chance).sum(1) / np.maximum(same.sum(1), 1)
    return share


def _live_state(
    laws: Laws, live: _History, tags: np.ndarray, communities: np.ndarray, strength: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Chance that the mood of the coming request is generous [U]; posterior of a passion for each cluster [U, C]."""
    users, length = live.valid.shape
    rows = np.arange(users)[:, None]
    joint = tags[rows, live.tag]  # [U, L, 3]
    expected = {
        "interest": joint[..., 1] + joint[..., 2],
        "passion": joint[..., 2],
        "community": communities[rows, community_of(live.author)],
        "quality": laws.authors.quality[live.author],
        "page": PAGE_EFFECT[live.page],
    }
    prior = _at_least_one(LIVE_PASSIONS, CLUSTERS) * laws.planted.live_bursts
    likelihood = np.empty((2, 2, users, length))  # of mood, of live passion
    for mood, passion in product((0, 1), (0, 1)):
        drivers = {name: expected.get(name, np.zeros(live.valid.shape)).ravel() for name in DRIVERS}
        drivers["mood"] = np.full(users * length, mood)
        drivers["live_passion"] = np.full(users * length, passion)
        logits = live_logits(laws.weights, drivers, np.repeat(strength, length)) + laws.odds.live
        likelihood[mood, passion] = _act_likelihood(sigmoid(logits).reshape(users, length, -1), live.acts)
    clusters = np.full((users, CLUSTERS), prior)
    if not laws.planted.live_bursts:
        return np.zeros(users), clusters
    generous, now, glances = np.zeros(live.valid.shape), np.zeros(users), _glances(live)
    for _ in range(2):
        weight = clusters[rows, live.cluster]
        by_mood = np.stack([(1 - weight) * likelihood[m, 0] + weight * likelihood[m, 1] for m in (0, 1)], -1)
        by_mood *= glances
        generous, now = _live_moods(by_mood, live.valid)
        mixed = [(1 - generous) * likelihood[0, p] + generous * likelihood[1, p] for p in (0, 1)]
        evidence = np.where(live.valid, np.log(mixed[1]) - np.log(mixed[0]), 0.0)
        score = np.zeros((users, CLUSTERS)) + np.log(prior / (1 - prior))
        np.add.at(score, (np.broadcast_to(rows, live.cluster.shape), live.cluster), evidence)
        clusters = sigmoid(score)
    return (1 - 1 / MOOD_REQUESTS) * now + MOOD_SHARES["live"] / MOOD_REQUESTS, clusters


def _live_moods(by_mood: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Moods of the requests behind the live events, SLATE to a request counted from the newest.  [U, L], [U]"""
    users, length = valid.shape
    n = valid.sum(1, keepdims=True)
    request = np.where(valid, (length - n + np.arange(length)) // SLATE, 0)  # the newest are the last
    requests = -(-length // SLATE)
    logs = np.zeros((users, requests, 2))
    rows = np.broadcast_to(np.arange(users)[:, None], valid.shape)
    np.add.at(logs, (rows, request), np.where(valid[..., None], np.log(by_mood), 0.0))
    likelihood = np.exp(logs - logs.max(-1, keepdims=True))
    ones = np.ones((users, requests), bool)
    others, now = _smooth(likelihood, ones, 1 / MOOD_REQUESTS, MOOD_SHARES["live"])
    # What other requests say of an event's request, and the other events of it.
    mates = np.exp((logs[rows, request] - np.log(by_mood)) - logs.max(-1)[rows, request][..., None])
    both = others[rows, request] * mates
    return both[..., 1] / both.sum(-1), now


def _expected(
    laws: Laws, joint: np.ndarray, chances: dict[str, np.ndarray], known: dict[str, np.ndarray], strength: np.ndarray
) -> np.ndarray:
    """The mean of the probabilities over the hidden facts.  joint [B, 3] of the candidate's tag -> [B, tasks]"""
    mean = np.zeros((len(joint), len(TASK_ACTS)))
    for facts in product((0, 1), repeat=len(chances)):
        weight = np.prod([p if on else 1 - p for on, p in zip(facts, chances.values(), strict=True)], axis=0)
        for state in range(3):
            drivers = {
                **known,
                "interest": int(state > 0),
                "passion": int(state == 2),
                **dict(zip(chances, facts, strict=True)),
            }
            spread = {name: np.broadcast_to(value, len(joint)) for name, value in drivers.items()}
            given = sigmoid(live_logits(laws.weights, spread, strength) + laws.odds.live)
            mean += (weight * joint[:, state])[:, None] * unconditional(given)
    return mean.astype(np.float32)
