"""An oracle for simulated data: what could be predicted of a label from the histories a ranker reads.

It knows the platform's laws (`world`, `outcomes`) but no user's hidden state, which it infers by Bayes' rule from the
same matrices that the towers read: where a swing stands from the times watched, interests and passions of every tag by
forward filtering, passions of every cluster and communities by likelihood.  Hidden facts are taken as independent given
the histories, so it is near the best predictor, and not above it.  The probabilities in live_truth.parquet know the
hidden state: their AUC is a bound that holds without approximation.

Letters: B samples, U requests, L events, A acts, G tags, C clusters, M communities, K places in a swing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from model.datasets.blocks import (
    LIVE_COMMUNITY,
    LIVE_FAMILIAR,
    MEMORY_ROOMS,
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
    Watching,
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
    FAMILIAR,
    FIRST_AUTHOR_ID,
    GROUP_STRENGTH,
    INTEREST_VIDEOS,
    INTERESTS,
    LIVE_DEEP,
    SWING,
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
    video: np.ndarray  # [4, A] probability of each act, given the act before, by interest + 2 passion
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


@dataclass(frozen=True)
class _Watched:
    """What the times watched tell of one domain's events: where the swing stands, and what was a passion."""

    swing: np.ndarray  # [U, L] expected, of each event
    passion: np.ndarray  # [U, L, 2] density of the time watched, without and with a passion; 1 where it tells nothing
    now: np.ndarray  # [U] expected swing of the coming request


def _watched(law: Watching, history: _History, tells: np.ndarray, chance: np.ndarray) -> _Watched:
    """tells [U, L]: whether the time watched follows the law.  chance [U, L]: of a passion, from elsewhere."""
    length = history.valid.shape[1]
    after = history.valid.sum(1, keepdims=True) - 1 - np.arange(length)  # [U, L] events of the domain after each
    place = np.arange(SWING)  # of the newest event in its swing
    swings = np.sin(2 * np.pi * (place - after[..., None]) / SWING)  # [U, L, K]
    off = np.log(np.maximum(history.play_time, 1))[..., None] - law.centre - law.swing * swings
    tells = (tells & history.valid)[..., None]
    density = [np.where(tells, np.exp(-(((off - p) / law.noise) ** 2) / 2) + 1e-6, 1.0) for p in (0.0, law.passion)]
    mixed = np.log((1 - chance[..., None]) * density[0] + chance[..., None] * density[1])
    whole = mixed.sum(1)  # [U, K]
    others = _share(whole[:, None] - mixed)  # [U, L, K] by what all other events say
    passion = np.stack([(others * d).sum(-1) for d in density], -1)
    posterior = _share(whole)
    ahead = np.sin(2 * np.pi * (place + (SLATE + 1) / 2) / SWING) * (law.swing > 0)
    return _Watched((posterior[:, None] * swings).sum(-1) * (law.swing > 0), passion, posterior @ ahead)


def _share(logs: np.ndarray) -> np.ndarray:
    """exp, to a sum of 1 over the last axis."""
    weight = np.exp(logs - logs.max(-1, keepdims=True))
    shares: np.ndarray = weight / weight.sum(-1, keepdims=True)
    return shares


def _tags(laws: Laws, video: _History) -> np.ndarray:
    """Posterior of every tag at the request: none, interest, passion.  [U, G, 3]"""
    states = np.array([0, 1, 3])  # as combinations of drivers
    acts = np.moveaxis(_act_likelihood(laws.video[:, None, None], video.acts), 0, -1)[..., states]  # [U, L, 3]
    clicked = video.acts[..., ACTS.index("click")]
    law = Watching.of("video", laws.planted)
    joint = np.broadcast_to(_prior(laws.planted), acts.shape)  # of each event's tag
    posterior = np.empty((len(video.valid), TAGS, 3))
    for _ in range(2):
        times = _watched(law, video, clicked, joint[..., 2]).passion[..., [0, 0, 1]]
        posterior = _filter_tags(laws.planted, video, acts * times)
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


def _communities(laws: Laws, histories: dict[float, _History]) -> np.ndarray:
    """Posterior of the user's community, of histories by the share that shows it.  [U, M]"""
    users = len(next(iter(histories.values())).valid)
    score = np.zeros((users, COMMUNITIES))
    if not laws.planted.communities:
        return score
    for shown, history in histories.items():
        own = community_of(history.author)[..., None] == np.arange(COMMUNITIES)
        score += np.log(1 + shown / (1 - shown) * COMMUNITIES) * (own & history.valid[..., None]).sum(1)  # [U, M]
    return _share(score)


def _predict(laws: Laws, data: Prepared, batch: Batch) -> np.ndarray:
    """[B, tasks]"""
    video, live = _History.of(data, batch, "video"), _History.of(data, batch, "live")
    tags, communities = _tags(laws, video), _communities(laws, {VIDEO_COMMUNITY: video, LIVE_COMMUNITY: live})
    interest = tags[..., 1] + tags[..., 2]  # [U, G]
    groups = batch.users.user[:, data.view.columns("user").index("activity_group")]
    strength = np.array(GROUP_STRENGTH)[groups] if laws.planted.groups else np.ones(len(groups))
    swing, evidence = _live_state(laws, live, tags, communities, strength)
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
        "memory": _memory(live, interest, cluster, u),
        "swing": swing[u],
    }
    chances = {
        "community": communities[u, community_of(author)],
        "live_passion": _live_passion(laws, live, evidence, cluster, u),
    }
    return _expected(laws, tags[u, tag], chances, known, strength[u])


def _memory(live: _History, interest: np.ndarray, cluster: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Of the cluster's rooms in memory, the expected share on a topic of interest.  [B]"""
    length = live.valid.shape[1]
    recent = np.arange(length) >= live.valid.sum(1, keepdims=True) - (MEMORY_VIEWS - SLATE // 2)
    same = (live.cluster[u] == cluster[:, None]) & (live.valid & recent)[u]  # [B, L]
    same &= np.cumsum(same[:, ::-1], axis=1)[:, ::-1] <= MEMORY_ROOMS
    chance = interest[u[:, None], live.tag[u]]  # [B, L]
    share: np.ndarray = (same * chance).sum(1) / np.maximum(same.sum(1), 1)
    return share


def _live_state(
    laws: Laws, live: _History, tags: np.ndarray, communities: np.ndarray, strength: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Expected swing of the coming request [U]; log likelihood ratio of a passion for each cluster [U, C]."""
    users, length = live.valid.shape
    rows = np.arange(users)[:, None]
    evidence = np.zeros((users, CLUSTERS))
    if not laws.planted.live_bursts:
        return np.zeros(users), evidence
    joint = tags[rows, live.tag]  # [U, L, 3]
    before = ~live.acts[..., ACTS.index("effective_view")]
    law = Watching.of("live", laws.planted)
    now = np.zeros(users)
    for _ in range(2):
        chance = sigmoid(evidence + np.log(LIVE_DEEP / (1 - LIVE_DEEP)))[rows, live.cluster]
        watched = _watched(law, live, before, chance)
        expected = {
            "interest": joint[..., 1] + joint[..., 2],
            "passion": joint[..., 2],
            "community": communities[rows, community_of(live.author)],
            "swing": watched.swing,
            "quality": laws.authors.quality[live.author],
            "page": PAGE_EFFECT[live.page],
        }
        drivers = {name: expected.get(name, np.zeros(live.valid.shape)).ravel() for name in DRIVERS}
        likely = []
        for passion in (0, 1):
            drivers["live_passion"] = np.full(users * length, passion)
            logits = live_logits(laws.weights, drivers, np.repeat(strength, length)) + laws.odds.live
            acts = _act_likelihood(sigmoid(logits).reshape(users, length, -1), live.acts)
            likely.append(np.log(acts) + np.log(watched.passion[..., passion]))
        ratio = np.where(live.valid, likely[1] - likely[0], 0.0)
        evidence = np.zeros((users, CLUSTERS))
        np.add.at(evidence, (np.broadcast_to(rows, live.cluster.shape), live.cluster), ratio)
        now = watched.now
    return now, evidence


def _live_passion(laws: Laws, live: _History, evidence: np.ndarray, cluster: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Chance that the candidate's cluster is a passion: some familiar ones are, and those are shown often.  [B]"""
    if not laws.planted.live_bursts:
        return np.zeros(len(u))
    seldom = (1 - LIVE_FAMILIAR) / CLUSTERS
    often = seldom + LIVE_FAMILIAR / FAMILIAR
    shown = ((live.cluster[u] == cluster[:, None]) & live.valid[u]).sum(1)  # [B]
    others = live.valid.sum(1)[u] - shown
    prior = FAMILIAR / CLUSTERS
    odds = (
        np.log(prior / (1 - prior)) + (shown + 1) * np.log(often / seldom) + others * np.log((1 - often) / (1 - seldom))
    )
    familiar = sigmoid(odds)
    deep = familiar * LIVE_DEEP
    ratio = np.exp(np.clip(evidence[u, cluster], -30, 30))
    chance: np.ndarray = deep * ratio / (deep * ratio + 1 - deep)
    return chance


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
