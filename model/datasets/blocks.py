"""Blocks of users of the simulated platform: who they are, what they are shown, what they do, and when.

Letters: U users of a block, N items (a video or a slate), V views, A acts, D days.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import numpy as np
from pydantic import BaseModel

from feature_store.schema import Domain, default_schema
from model.datasets.logs import FORMAT_VERSION, TASK_ACTS
from model.datasets.outcomes import (
    ACTED_BEFORE,
    ACTS,
    LEVELS_MS,
    PAGE_EFFECT,
    Odds,
    Watching,
    live_logits,
    live_times,
    live_weights,
    sigmoid,
    unconditional,
    video_combinations,
    video_times,
    video_weights,
)
from model.datasets.source import local_midnight
from model.datasets.world import (
    CLUSTERS,
    COMMUNITIES,
    FAMILIAR,
    FIRST_AUTHOR_ID,
    GROUP_SHARES,
    GROUPS,
    INTERESTS,
    TAGS,
    VIEWS_PER_DAY,
    Authors,
    People,
    Planted,
    cluster_of,
    community_of,
    holds,
)

UTC_OFFSET_S = 8 * 3600
FIRST_DAY = date(2025, 1, 1)

BEHAVIOURS = default_schema().behaviours
LIVE_SHARE = 0.1  # of all views (paper, Figure 1b)
LIVE_SHARE_EVEN = 0.5  # without the switch `exposure`
SLATE = 5  # live rooms that are ranked and shown together
SESSIONS_BEGIN = ((7.0, 11.0), (12.0, 17.0), (18.5, 22.0))  # hours in which the day's sessions begin
SESSION_SHARES = (0.20, 0.25, 0.55)
GAP_MS = 1_500  # between items, on average
PAGE_SHARES: dict[Domain, tuple[float, ...]] = {"video": (0.70, 0.20, 0.07, 0.03), "live": (0.60, 0.25, 0.10, 0.05)}
VIDEO_INTEREST = 0.80  # share of videos of a tag of interest; the rest is of any tag
VIDEO_COMMUNITY = 0.70  # share of videos by authors of the user's community
LIVE_FAMILIAR = 0.80  # share of live rooms of a familiar cluster
LIVE_COMMUNITY = 0.45  # by authors of the user's community; the rest is anyone's
MEMORY_VIEWS = 50  # live views after which a room is forgotten
MEMORY_ROOMS = 12  # rooms of one cluster that are remembered
BLOCK_VIEWS = 1_000_000  # of a block, about
PLANTED_FOR = {  # the ablation that takes away the module a structure is for, and the tasks it speaks in
    "no_video_frequency": ("video_bursts", ("lvtr", "ltr")),
    "no_live_frequency": ("live_bursts", ("lvtr", "ltr")),
    "no_align": ("communities", ("ctr", "etr")),
    "no_fuse": ("memory", ("ctr", "etr")),
}

Columns = dict[str, np.ndarray]


class Simulation(BaseModel):
    """meta.json: how the logs came to be, and what is in them."""

    format_version: int = FORMAT_VERSION
    source: str = "simulated"
    seed: int
    users: int
    authors: int
    first_day: date
    days: int
    utc_offset_s: int = UTC_OFFSET_S
    group_names: tuple[str, ...] = GROUPS
    views: dict[str, int] = {}
    rates: dict[str, dict[str, float]] = {}  # measured
    simulation: dict[str, Any] = {}  # for the oracle and the study

    @property
    def last_day(self) -> date:
        """The day to test on."""
        return self.first_day + timedelta(days=self.days - 1)


@dataclass(frozen=True)
class Items:
    """What a block's users are shown, in the order of (user, day, session, time).  A slate counts as one item."""

    segment: np.ndarray  # [N] (user, day, session) as one number
    user: np.ndarray  # [N] row in the block
    day: np.ndarray  # [N]
    evening: np.ndarray  # [N] bool
    slate: np.ndarray  # [N] bool
    video: np.ndarray  # [N] videos of the user before the item
    request: np.ndarray  # [N] slates of the user before the item

    @classmethod
    def draw(cls, group: np.ndarray, days: int, slate_share: float, rng: np.random.Generator) -> Items:
        """group: [U]"""
        views = np.array(VIEWS_PER_DAY)[group] / (1 + (SLATE - 1) * slate_share)  # [U] items a day
        sessions = rng.multinomial(rng.poisson(views[:, None], (len(group), days)), SESSION_SHARES)  # [U, D, 3]
        segment = np.repeat(np.arange(sessions.size, dtype=np.int32), sessions.ravel())
        slate = rng.random(len(segment), np.float32) < slate_share
        user = segment // np.int32(days * 3)
        first = np.searchsorted(user, np.arange(len(group)))
        return cls(
            segment=segment,
            user=user,
            day=segment // np.int32(3) % np.int32(days),
            evening=segment % np.int32(3) == 2,
            slate=slate,
            video=_before(~slate, first, user),
            request=_before(slate, first, user),
        )


def _before(flags: np.ndarray, first: np.ndarray, user: np.ndarray) -> np.ndarray:
    """How many flags of the same user are set before each item.  [N] int32"""
    before = np.cumsum(flags, dtype=np.int32) - flags
    own: np.ndarray = before - np.append(before, 0)[first][user]
    return own


class Platform:
    """The simulated platform: block after block of users."""

    def __init__(self, info: Simulation, authors: Authors, planted: Planted) -> None:
        self.info, self.authors, self.planted = info, authors, planted
        share = LIVE_SHARE if planted.exposure else LIVE_SHARE_EVEN
        self.slate_share = share / (SLATE - (SLATE - 1) * share)
        self.block_users = max(1, BLOCK_VIEWS // (52 * info.days))
        self.blocks = -(-info.users // self.block_users)
        self.video_logits = video_combinations(video_weights(planted))  # [4, A]
        self.live_weights = live_weights(planted)
        pilot = Block(self, 0)
        combinations = self.video_logits[pilot.videos()[1]]
        self.odds = Odds.fitted(planted, combinations, self.live_logits(pilot, pilot.rooms()))

    def block(self, number: int) -> dict[str, Columns]:
        """The log tables of one block of users."""
        return Block(self, number).tables()

    def live_logits(self, block: Block, rooms: Columns) -> np.ndarray:
        """What the drivers add to the log odds of live views.  [V, A]"""
        return live_logits(self.live_weights, rooms, block.people.strength[rooms["user"]])

    def as_dict(self) -> dict[str, Any]:
        """What the oracle and the study are told."""
        switches = self.planted.as_dict()
        return {
            "seed": self.info.seed,
            "days": self.info.days,
            "first_day": self.info.first_day.isoformat(),
            "authors": self.authors.count,
            "structures": switches,
            "null": self.planted == Planted.nothing(),
            "planted": {name: list(tasks) for name, (switch, tasks) in PLANTED_FOR.items() if switches[switch]},
            "odds": self.odds.as_dict(),
        }


class Block:
    """A block of users: who they are, what they are shown and what they do."""

    def __init__(self, platform: Platform, number: int) -> None:
        info = platform.info
        self.platform, self.authors, self.planted = platform, platform.authors, platform.planted
        self.first_user = number * platform.block_users
        users = min(platform.block_users, info.users - self.first_user)
        self.rng = np.random.default_rng([info.seed, 1, number])
        group = self.rng.choice(len(GROUPS), users, p=GROUP_SHARES)
        self.items = Items.draw(group, info.days, platform.slate_share, self.rng)
        self.people = People.create(group, int(self.items.video.max(initial=0)) + 1, self.planted, self.rng)
        self.group = group

    def videos(self) -> tuple[Columns, np.ndarray]:
        """The videos shown, by column, and the combination of drivers of each.  [V]"""
        place = np.flatnonzero(~self.items.slate)
        user, video, rng = self.items.user[place], self.items.video[place], self.rng
        tag = self._video_tags(user, video)
        own = rng.random(len(place), np.float32) < VIDEO_COMMUNITY * self.planted.communities
        anyone = rng.integers(0, COMMUNITIES, len(place), np.uint8)
        community = np.where(own, self.people.community[user], anyone)
        cluster = rng.integers(0, CLUSTERS, len(place), np.uint8).astype(np.int64)
        author = self.authors.pick(cluster, community, rng.random(len(place), np.float32))
        combination = holds(self.people.interest_mask(user, video), tag).astype(np.uint8)
        combination |= holds(self.people.passion_mask(user, video), tag).astype(np.uint8) << 1
        page = _pages("video", len(place), rng)
        swing = self.people.swing("video", user, video)
        return {"place": place, "user": user, "tag": tag, "author": author, "page": page, "swing": swing}, combination

    def _video_tags(self, user: np.ndarray, video: np.ndarray) -> np.ndarray:
        rng, people = self.rng, self.people
        tag = rng.integers(0, TAGS, len(user), np.uint8).astype(np.int64)
        shown = VIDEO_INTEREST * (self.planted.interests or self.planted.video_bursts)
        liked = np.flatnonzero(rng.random(len(user), np.float32) < shown)
        tag[liked] = people.interest_of(user[liked], video[liked], rng.integers(0, INTERESTS, len(liked)))
        return tag

    def rooms(self) -> Columns:
        """The live rooms shown, by column, the drivers among them.  [V], SLATE neighbours to a request"""
        slates = np.flatnonzero(self.items.slate)
        place = np.repeat(slates, SLATE)
        user, video, day = (column[place] for column in (self.items.user, self.items.video, self.items.day))
        author = self._live_authors(user)
        tag, cluster = self.authors.room_tag[author, day], cluster_of(author)
        view = SLATE * self.items.request[place] + np.tile(np.arange(SLATE), len(slates))
        interests = self.people.interest_mask(user, video)
        page = np.repeat(_pages("live", len(slates), self.rng), SLATE)
        return {
            "place": place,
            "user": user,
            "author": author,
            "tag": tag,
            "cluster": cluster,
            "page_number": page,
            "interest": holds(interests, tag),
            "memory": self._remembered(user, cluster, tag, interests),
            "community": community_of(author) == self.people.community[user],
            "passion": holds(self.people.passion_mask(user, video), tag),
            "live_passion": holds(self.people.live_passion_mask[user], cluster),
            "swing": self.people.swing("live", user, view),
            "quality": self.authors.quality[author],
            "page": PAGE_EFFECT[page],
            "evening": self.items.evening[place],
        }

    def _live_authors(self, user: np.ndarray) -> np.ndarray:
        """[V]"""
        rng, views = self.rng, len(user)
        known = rng.random(views, np.float32) < LIVE_FAMILIAR
        cluster = self.people.familiar[user, rng.integers(0, FAMILIAR, views)]
        cluster = np.where(known, cluster, rng.integers(0, CLUSTERS, views))
        own = rng.random(views, np.float32) < LIVE_COMMUNITY * self.planted.communities
        community = np.where(own, self.people.community[user], rng.integers(0, COMMUNITIES, views))
        return self.authors.pick(cluster, community, rng.random(views, np.float32))

    def _remembered(self, user: np.ndarray, cluster: np.ndarray, tag: np.ndarray, interests: np.ndarray) -> np.ndarray:
        """Of the rooms of the cluster in the user's memory, the share on a topic that is of interest now.  [V]"""
        order = np.argsort(user * np.int64(CLUSTERS) + cluster, kind="stable")
        seen, liked = np.zeros(len(user), np.float32), np.zeros(len(user), np.float32)
        for back in range(1, MEMORY_ROOMS + 1):
            earlier, now = order[:-back], order[back:]
            same = (user[now] == user[earlier]) & (cluster[now] == cluster[earlier])
            same &= (now - earlier <= MEMORY_VIEWS) & (now // SLATE != earlier // SLATE)
            now, earlier = now[same], earlier[same]
            seen[now] += 1
            liked[now] += holds(interests[now], tag[earlier])
        return liked / np.maximum(seen, 1)

    def tables(self) -> dict[str, Columns]:
        videos, combination = self.videos()
        rooms = self.rooms()
        logits = self.platform.live_logits(self, rooms) + self.platform.odds.live
        self._watch(videos, combination)
        rooms |= _acts(sigmoid(logits).T, None, {}, self.rng)
        law = Watching.of("live", self.planted)
        rooms["play_time"] = live_times(rooms, law.draw(rooms["swing"], rooms["live_passion"], self.rng), self.rng)
        self._set_times(videos, rooms)
        self._set_ids(videos, rooms)
        rooms["page"] = rooms["page_number"]
        truth = {"user_id": rooms["user_id"], "view_id": rooms["view_id"]}
        truth |= dict(zip(TASK_ACTS, unconditional(sigmoid(logits)).T, strict=True))
        users = {"user_id": self.first_user + 1 + np.arange(len(self.group)), "activity_group": self.group}
        return {"video_events": videos, "live_events": rooms, "live_truth": truth, "users": users}

    def _watch(self, videos: Columns, combination: np.ndarray) -> None:
        """What is done with the videos, effective and long views by the time watched."""
        given = sigmoid(self.platform.video_logits + self.platform.odds.video)  # [4, A]
        times = Watching.of("video", self.planted).draw(videos["swing"], combination >= 2, self.rng)
        levels = dict(zip(("effective_view", "long_view"), LEVELS_MS["video"], strict=True))
        known = {act: times >= level for act, level in levels.items()}
        videos |= _acts(given.T, combination, known, self.rng)
        videos["play_time"] = video_times(videos["click"], times, self.rng)

    def _set_times(self, videos: Columns, rooms: Columns) -> None:
        """Items follow each other within a session, and the rooms of a slate within their request."""
        items, days = self.items, self.platform.info.days
        slates = rooms["play_time"].reshape(-1, SLATE).astype(np.int64)
        taken = (300 + GAP_MS * self.rng.standard_exponential(len(items.user), np.float32)).astype(np.int64)
        taken[videos["place"]] += videos["play_time"]
        taken[rooms["place"][::SLATE]] += slates.sum(1)
        before = np.cumsum(taken) - taken
        first = np.flatnonzero(np.diff(items.segment, prepend=-1))
        begin = self._sessions_begin(len(self.group) * days)[items.segment[first]] - before[first]
        start = before + np.repeat(begin, np.diff(first, append=len(before)))
        videos["event_time"] = start[videos["place"]]
        rooms["request_time"] = start[rooms["place"]]
        rooms["event_time"] = rooms["request_time"] + (np.cumsum(slates, axis=1) - slates).ravel()

    def _sessions_begin(self, user_days: int) -> np.ndarray:
        """ms since 1970 of every (user, day, session).  [U D 3] int64"""
        info = self.platform.info
        first, last = np.array(SESSIONS_BEGIN).T
        hours = self.rng.uniform(first, last, (user_days, len(SESSIONS_BEGIN)))
        day = np.tile(np.arange(info.days), user_days // info.days)[:, None]
        midnight = local_midnight(info.first_day, info.utc_offset_s)
        begin: np.ndarray = (midnight + 86_400_000 * day + (3_600_000 * hours).astype(np.int64)).ravel()
        return begin

    def _set_ids(self, videos: Columns, rooms: Columns) -> None:
        """A view's number counts its user's views of the domain, so it is the user's own."""
        for table in (videos, rooms):
            user = table["user"].astype(np.int64)
            first = np.searchsorted(user, np.arange(len(self.group)))
            table["user_id"] = self.first_user + 1 + user
            table["view_id"] = 1 + np.arange(len(user)) - np.append(first, 0)[user]
            table["author_id"] = FIRST_AUTHOR_ID + table["author"]
        rooms["live_id"] = self.authors.live_id(rooms["author"], self.items.day[rooms["place"]])


def _acts(given: np.ndarray, combination: np.ndarray | None, known: Columns, rng: np.random.Generator) -> Columns:
    """Draw every act of V views.  given [A, V], or [A, 4] by combination [V]: probabilities given the act before.

    known [V]: by act, whether it follows the act before, where that is not drawn.
    """
    views = given.shape[1] if combination is None else len(combination)
    done: Columns = {}
    able: dict[str, np.ndarray] = {}
    for index, act in enumerate(ACTS):
        before = ACTED_BEFORE.get(act)
        if act in known:
            done[act] = done[str(before)] & known[act]
            continue
        done[act] = np.zeros(views, bool)
        if before is not None and before not in able:
            able[before] = np.flatnonzero(done[before])
        who = np.arange(views) if before is None else able[before]
        chance = given[index][who if combination is None else combination[who]]
        done[act][who] = rng.random(len(who), np.float32) < chance
    return done


def _pages(domain: Domain, count: int, rng: np.random.Generator) -> np.ndarray:
    shares = np.cumsum(PAGE_SHARES[domain])[:-1].astype(np.float32)
    pages: np.ndarray = np.searchsorted(shares, rng.random(count, np.float32)).astype(np.int16)
    return pages
