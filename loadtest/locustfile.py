"""Locust traffic that ranks, and checks every answer.

Environment:
    FARM_LOAD_IDS    JSON file {"users": [...], "authors": [...], "now_ms": ...?}; or
    FARM_LOAD_USERS, FARM_LOAD_AUTHORS    ranges such as 0-26999; default 0-999
    FARM_LOAD_NOW_MS    time of the requests, for old logs; default the server's clock
"""

from __future__ import annotations

import json
import os
import random
from bisect import bisect
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from locust import FastHttpUser, constant, task

_ZIPF_EXPONENT = 1.1  # a few users ask for much of the traffic
_CANDIDATES = {50: 2, 200: 6, 500: 2}  # count: share
_TOLERANCE = 1e-9  # of the sort order


def _range(name: str) -> list[int]:
    first, _, last = os.environ.get(name, "0-999").partition("-")
    return list(range(int(first), int(last) + 1))


def _ids() -> dict[str, Any]:
    if file := os.environ.get("FARM_LOAD_IDS"):
        found: dict[str, Any] = json.loads(Path(file).read_text())
        return found
    return {"users": _range("FARM_LOAD_USERS"), "authors": _range("FARM_LOAD_AUTHORS")}


_known = _ids()
_users, _authors = _known["users"], _known["authors"]
_now_ms = _known.get("now_ms") or (int(os.environ["FARM_LOAD_NOW_MS"]) if "FARM_LOAD_NOW_MS" in os.environ else None)
_popularity = list(accumulate((rank + 1) ** -_ZIPF_EXPONENT for rank in range(len(_users))))


def request(rng: random.Random) -> dict[str, Any]:
    """A user by Zipf's law, and distinct authors."""
    user = _users[min(bisect(_popularity, rng.random() * _popularity[-1]), len(_users) - 1)]
    (count,) = rng.choices(list(_CANDIDATES), list(_CANDIDATES.values()))
    candidates = rng.sample(_authors, min(count, len(_authors)))
    return {"user_id": user, "candidates": candidates, "page": rng.randrange(4), "now_ms": _now_ms}


def fault(asked: dict[str, Any], answer: dict[str, Any], tasks: list[str]) -> str | None:
    """What is wrong with an answer; None when it is right."""
    rows = answer["ranking"]
    if sorted(str(row["author_id"]) for row in rows) != sorted(map(str, asked["candidates"])):
        return "the authors of the answer are not those of the request"
    scores = [row["score"] for row in rows]
    if any(later > earlier + _TOLERANCE for earlier, later in pairwise(scores)):
        return "the ranking is not sorted by score"
    for row in rows:
        if list(row["xtr"]) != tasks:
            return f"author {row['author_id']}: tasks are {list(row['xtr'])}, the model's are {tasks}"
        if not all(0 <= probability <= 1 for probability in row["xtr"].values()):
            return f"author {row['author_id']}: a probability is outside 0..1"
    return None


class Ranker(FastHttpUser):
    """One caller that asks again as soon as it is answered."""

    wait_time = constant(0)

    def on_start(self) -> None:
        self._rng = random.Random()
        self._tasks = self.client.get("/version").json()["tasks"]

    @task
    def rank(self) -> None:
        asked = request(self._rng)
        with self.client.post("/rank", json=asked, catch_response=True) as response:
            if response.status_code != 200:
                response.failure(f"status {response.status_code}")
            elif wrong := fault(asked, response.json(), self._tasks):
                response.failure(wrong)
