"""The hidden state of the simulated platform: what users are after and what authors offer, day by day.

Letters: U users, A authors, G tags, K latent dimensions, V views.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from feature_store.schema import Domain

TAGS = 32
CLUSTERS = 20
LATENT = 8  # K
GROUPS = ("low", "mid", "high", "full")
GROUP_SHARES = (0.35, 0.30, 0.20, 0.15)
VIEWS_PER_DAY = (12, 35, 80, 140)  # of a user of each group, both domains; 52 on average
FAVOURITES = 4  # authors a user is a fan of
NEW_FAVOURITE = 0.1  # chance a day that a fan turns to another author
DRIFT = 0.15  # share of a user's interests that is new each day
BURST_CHANCE = 0.6  # that a user takes up a passion for one tag in a day
BURST_HOURS = 14.0  # median length of a burst
BURST_DAYS = 3  # a burst begun on a day is over by the end of the second day after
OTHER_TAG = 0.15  # chance that a video or a live room is of another tag than its author's


@dataclass(frozen=True)
class Bursts:
    """The burst that each user begins on one day; strength 0 for who begins none.  [U] each"""

    tag: np.ndarray
    start: np.ndarray  # hours since the simulation's start
    end: np.ndarray
    strength: np.ndarray

    def heat(self, users: np.ndarray, tags: np.ndarray, hours: np.ndarray) -> np.ndarray:
        """How much views [V] of `tags` at `hours` profit from their user's burst.  [V]"""
        lit = (self.tag[users] == tags) & (self.start[users] <= hours) & (hours < self.end[users])
        return np.where(lit, self.strength[users], 0.0)


@dataclass
class World:
    """Users, authors and tags; `next_day` moves it on."""

    tag_vectors: np.ndarray  # [G, K]
    author_tag: np.ndarray  # [A], ascending, so that the authors of a tag are neighbours
    author_vectors: np.ndarray  # [A, K]
    quality: np.ndarray  # [A]
    cluster: np.ndarray  # [A]
    popularity: dict[Domain, np.ndarray]  # [A] running sums of exposure weights
    group: np.ndarray  # [U]
    mood: np.ndarray  # [U] how ready a user is to act at all
    interests: np.ndarray  # [U, K]
    favourites: np.ndarray  # [U, FAVOURITES]
    bursts: list[Bursts]  # the newest BURST_DAYS
    room_tag: np.ndarray  # [A] of the day's live room

    @classmethod
    def create(cls, users: int, authors: int, rng: np.random.Generator) -> World:
        tag_vectors = rng.normal(size=(TAGS, LATENT))
        author_tag = np.sort(np.concatenate([np.arange(TAGS), rng.integers(0, TAGS, authors - TAGS)]))
        author_vectors = 0.8 * tag_vectors[author_tag] + 0.6 * rng.normal(size=(authors, LATENT))
        popularity: dict[Domain, np.ndarray] = {
            "video": np.cumsum(rng.lognormal(0, 1.2, authors)),
            "live": np.cumsum(rng.lognormal(0, 1.2, authors)),
        }
        world = cls(
            tag_vectors=tag_vectors,
            author_tag=author_tag,
            author_vectors=author_vectors,
            quality=rng.normal(size=authors),
            cluster=(author_vectors @ rng.normal(size=(LATENT, CLUSTERS))).argmax(axis=1),
            popularity=popularity,
            group=rng.choice(len(GROUPS), users, p=GROUP_SHARES),
            mood=rng.normal(size=users),
            interests=rng.normal(size=(users, LATENT)),
            favourites=rng.integers(0, authors, (users, FAVOURITES)),
            bursts=[],
            room_tag=author_tag,
        )
        for day in range(1 - BURST_DAYS, 0):  # so that the first day has as many bursts as any
            world.next_day(day, rng)
        return world

    def next_day(self, day: int, rng: np.random.Generator) -> None:
        """Interests drift, fans turn to new favourites, bursts begin, live rooms choose their tags."""
        fresh = rng.normal(size=self.interests.shape)
        self.interests = np.sqrt(1 - DRIFT) * self.interests + np.sqrt(DRIFT) * fresh
        turned = rng.random(self.favourites.shape) < NEW_FAVOURITE
        self.favourites = np.where(turned, rng.integers(0, len(self.author_tag), turned.shape), self.favourites)
        self.bursts = [*self.bursts, self._begin_bursts(day, rng)][-BURST_DAYS:]
        self.room_tag = self.content_tags(np.arange(len(self.author_tag)), rng)

    def _begin_bursts(self, day: int, rng: np.random.Generator) -> Bursts:
        users = len(self.group)
        start = 24.0 * day + rng.uniform(0, 24, users)
        length = np.minimum(BURST_HOURS * rng.lognormal(0, 0.6, users), 24.0 * (BURST_DAYS - 1))
        # Half of the bursts are of no former interest: nothing but the burst itself gives them away.
        interested = self.wanted_tags(np.arange(users), rng)
        tag = np.where(rng.random(users) < 0.5, interested, rng.integers(0, TAGS, users))
        strength = np.where(rng.random(users) < BURST_CHANCE, rng.lognormal(0, 0.3, users), 0.0)
        return Bursts(tag, start, start + length, strength)

    def content_tags(self, authors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The tags of one piece of content of each author.  [V]"""
        other = rng.random(len(authors)) < OTHER_TAG
        tags: np.ndarray = np.where(other, rng.integers(0, TAGS, len(authors)), self.author_tag[authors])
        return tags

    def wanted_tags(self, users: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A tag for each of `users` [V], drawn by their interests (Gumbel's way to sample a softmax).  [V]"""
        affinity = self.interests[users] @ self.tag_vectors.T / np.sqrt(LATENT)  # [V, G]
        tags: np.ndarray = (1.5 * affinity + rng.gumbel(size=affinity.shape)).argmax(axis=1)
        return tags

    def burst_tags(self, users: np.ndarray, hours: np.ndarray) -> np.ndarray:
        """The tag of the newest burst of `users` [V] that is on at `hours`; -1 where none is.  [V]"""
        tags = np.full(len(users), -1)
        for bursts in self.bursts:
            burning = bursts.heat(users, bursts.tag[users], hours) > 0
            tags = np.where(burning, bursts.tag[users], tags)
        return tags

    def heat(self, users: np.ndarray, tags: np.ndarray, hours: np.ndarray) -> np.ndarray:
        """[V]"""
        heat: np.ndarray = np.max([bursts.heat(users, tags, hours) for bursts in self.bursts], axis=0)
        return heat

    def affinity(self, users: np.ndarray, authors: np.ndarray, tags: np.ndarray) -> np.ndarray:
        """How well a view's content fits its user's interests, of variance about 1.  [V]"""
        content = 0.6 * self.author_vectors[authors] + 0.6 * self.tag_vectors[tags]  # [V, K]
        fit: np.ndarray = np.einsum("vk,vk->v", self.interests[users], content) / np.sqrt(LATENT)
        return fit

    def pick_authors(self, domain: Domain, tags: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """An author for each view, by popularity: of the tag, or of any where it is -1.  [V]"""
        sums = np.concatenate([[0.0], self.popularity[domain]])
        first = np.searchsorted(self.author_tag, tags, side="left")
        last = np.where(tags < 0, len(self.author_tag), np.searchsorted(self.author_tag, tags, side="right"))
        weight = sums[first] + rng.random(len(tags)) * (sums[last] - sums[first])
        authors: np.ndarray = np.clip(np.searchsorted(sums, weight, side="right") - 1, first, last - 1)
        return authors
