"""The hidden state of the simulated platform: what authors offer and what users are after.  Structures are switches.

Tags and clusters are what a log shows of content.  A user has, hidden: interests (a few tags, which drift as videos
are watched), familiar clusters in the live domain, passions (some of either, shown by longer looks than at what
surrounds them), an attention that swings slowly between short and long, and a community of authors.
docs/data.md tells which part of FARM each is planted for.

Letters: U users of a block, A authors, D days, G tags.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import numpy as np

from feature_store.schema import DOMAINS, Domain

TAGS = 12
CLUSTERS = 16
COMMUNITIES = 12
AUTHOR_STEP = CLUSTERS * COMMUNITIES  # an author's cluster and community are digits of its number
FIRST_AUTHOR_ID = 100_001
GROUPS = ("low", "mid", "high", "full")
GROUP_SHARES = (0.35, 0.30, 0.20, 0.15)
VIEWS_PER_DAY = (12, 35, 80, 140)  # of a user of each group, both domains; 52 on average
GROUP_STRENGTH = (1.3, 1.15, 0.85, 0.7)  # how much a user of each group follows what is planted

INTERESTS = 4  # tags
INTEREST_VIDEOS = 240  # videos for which an interest lasts; one of the four changes every 60
DEEP = 0.5  # share of interests that are passions
FAMILIAR = 5  # clusters that a user is shown again and again in the live domain
LIVE_DEEP = 0.5  # share of those that are passions
SWING = 50  # views of a domain in which a user's attention swings once between short and long
SWINGS = np.sin(2 * np.pi * np.arange(SWING) / SWING).astype(np.float32)


@dataclass(frozen=True)
class Planted:
    """What is planted; each can be switched off.  `nothing()` is the null: labels are coin flips."""

    interests: bool = True  # live clicks follow tags that only the video history shows
    drift: bool = True  # interests change slowly; off: they never do
    video_bursts: bool = True  # passions, shown by longer looks at videos than at those around them
    live_bursts: bool = True  # the same in the live domain, for clusters
    memory: bool = True  # clusters whose rooms, as remembered, were on what is of interest now are clicked
    communities: bool = True  # users see and click authors of their own community, which no attribute tells
    groups: bool = True  # less active users follow all of this more
    context: bool = True  # quality of authors, page, time of day
    exposure: bool = True  # nine views in ten are of videos; off: one in two
    sparsity: bool = True  # acts as rare as in Figure 1 of the paper; off: five times as many strong acts

    @classmethod
    def nothing(cls) -> Planted:
        """No label depends on anything; exposure and sparsity stay, being no signal."""
        return cls(**{name: name in ("exposure", "sparsity") for name in cls.names()})

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return tuple(cls.__dataclass_fields__)

    def without(self, *names: str) -> Planted:
        """ValueError names what is no structure."""
        for name in names:
            if name not in self.names():
                raise ValueError(f"without {name!r}: no such structure; there are {', '.join(self.names())}")
        return replace(self, **dict.fromkeys(names, False))

    def as_dict(self) -> dict[str, bool]:
        return asdict(self)


@dataclass(frozen=True)
class Authors:
    """What is fixed about authors.  An author's number n gives its cluster, n mod C, and its community."""

    count: int  # A
    quality: np.ndarray  # [A] float32
    room_tag: np.ndarray  # [A, D] int16: an author has one live room a day, each on a topic of its own

    @classmethod
    def create(cls, authors: int, days: int, seed: int) -> Authors:
        """authors: rounded up to a whole number of (cluster, community) pairs."""
        count = -(-authors // AUTHOR_STEP) * AUTHOR_STEP
        rng = np.random.default_rng([seed, 0])
        quality = rng.standard_normal(count, np.float32)
        room_tag = np.stack([rng.integers(0, TAGS, count, np.int16) for _ in range(days)], axis=1)
        return cls(count, quality, room_tag)

    def live_id(self, author: np.ndarray, day: np.ndarray) -> np.ndarray:
        """[V] each -> [V] int64"""
        ids: np.ndarray = 1 + day * self.count + author
        return ids

    def pick(self, cluster: np.ndarray, community: np.ndarray, draw: np.ndarray) -> np.ndarray:
        """An author of each cluster and community [V], popular ones more often; draw uniform in [0, 1).  [V] int64"""
        rank = (draw * draw * (self.count // AUTHOR_STEP)).astype(np.int64)
        authors: np.ndarray = cluster + CLUSTERS * (community + COMMUNITIES * rank)
        return authors


def cluster_of(author: np.ndarray) -> np.ndarray:
    """The content cluster of each author number.  [V]"""
    clusters: np.ndarray = author % CLUSTERS
    return clusters


def community_of(author: np.ndarray) -> np.ndarray:
    """The community of each author number.  [V]"""
    communities: np.ndarray = author // CLUSTERS % COMMUNITIES
    return communities


@dataclass(frozen=True)
class People:
    """The hidden state of a block of users.  Sets of tags or clusters are bit masks."""

    group: np.ndarray  # [U]
    strength: np.ndarray  # [U] float32
    interests: np.ndarray  # [U, INTERESTS, S] tags by slot and stretch of INTEREST_VIDEOS
    interest_masks: np.ndarray  # [U, steps] uint32, one step every INTEREST_VIDEOS / INTERESTS videos
    passion_masks: np.ndarray  # [U, steps] uint32
    live_passion_mask: np.ndarray  # [U] uint32 of clusters
    phase: np.ndarray  # [U, 2] where in its swing the attention begins, in videos and in live views
    community: np.ndarray  # [U]
    familiar: np.ndarray  # [U, FAMILIAR] clusters

    @classmethod
    def create(cls, group: np.ndarray, videos: int, planted: Planted, rng: np.random.Generator) -> People:
        """group: [U].  videos: the most of any user."""
        users = len(group)
        stretches = 1 if not planted.drift else videos // INTEREST_VIDEOS + 2
        interests = rng.integers(0, TAGS, (users, INTERESTS, stretches), np.int16)
        tags = np.uint32(1) << interests.astype(np.uint32)
        deep = rng.random(interests.shape) < DEEP * planted.video_bursts
        familiar = np.argsort(rng.random((users, CLUSTERS), np.float32), axis=1)[:, :FAMILIAR]
        live_deep = rng.random(familiar.shape) < LIVE_DEEP
        strength = np.array(GROUP_STRENGTH if planted.groups else [1.0] * len(GROUPS), np.float32)
        return cls(
            group=group,
            strength=strength[group],
            interests=interests,
            interest_masks=_masks(tags, videos),
            passion_masks=_masks(deep * tags, videos),
            live_passion_mask=np.bitwise_or.reduce(live_deep * (np.uint32(1) << familiar.astype(np.uint32)), axis=1),
            phase=rng.integers(0, SWING, (users, 2)),
            community=rng.integers(0, COMMUNITIES, users),
            familiar=familiar,
        )

    def interest_of(self, user: np.ndarray, video: np.ndarray, slot: np.ndarray) -> np.ndarray:
        """The tag in one slot of each user's interests at its `video`-th video.  [V]"""
        stretch = (video + slot * (INTEREST_VIDEOS // INTERESTS)) // INTEREST_VIDEOS
        stretch = np.minimum(stretch, self.interests.shape[2] - 1)  # without drift there is but one
        tags: np.ndarray = self.interests[user, slot, stretch]
        return tags

    def interest_mask(self, user: np.ndarray, video: np.ndarray) -> np.ndarray:
        """The set of interests of each user at its `video`-th video.  [V] uint32"""
        return self._at(self.interest_masks, user, video)

    def passion_mask(self, user: np.ndarray, video: np.ndarray) -> np.ndarray:
        """The interests among them that are passions.  [V] uint32"""
        return self._at(self.passion_masks, user, video)

    def _at(self, masks: np.ndarray, user: np.ndarray, video: np.ndarray) -> np.ndarray:
        step = np.minimum(video // (INTEREST_VIDEOS // INTERESTS), masks.shape[1] - 1)
        sets: np.ndarray = masks[user, step]
        return sets

    def swing(self, domain: Domain, user: np.ndarray, view: np.ndarray) -> np.ndarray:
        """How long each user's attention is at its `view`-th view of the domain, from -1 to 1.  [V] float32"""
        swings: np.ndarray = SWINGS[(view + self.phase[user, DOMAINS.index(domain)]) % SWING]
        return swings


def holds(mask: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Whether each set holds each value.  [V] uint32, [V] -> [V] bool"""
    there: np.ndarray = (mask >> value.astype(np.uint32)) & np.uint32(1) == 1
    return there


def _masks(sets: np.ndarray, videos: int) -> np.ndarray:
    """Sets of one tag by slot and stretch [U, INTERESTS, S] uint32 -> their unions, step by step [U, steps]"""
    step = np.arange(videos // (INTEREST_VIDEOS // INTERESTS) + 2)
    slot = np.arange(INTERESTS)
    stretch = np.minimum((step[:, None] + slot) // INTERESTS, sets.shape[2] - 1)  # [steps, INTERESTS]
    unions: np.ndarray = np.bitwise_or.reduce(sets[:, slot, stretch], axis=-1)
    return unions
