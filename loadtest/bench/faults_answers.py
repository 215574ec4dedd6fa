"""Whether the answer to a ranking is a right one in form, for `farm bench faults`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from loadtest.load.figures import LoadResult
from loadtest.load.trace import Kind

STORE_WORDS = frozenset({"stale_history", "no_history", "corrupt_history", "unknown_authors", "stale_authors"})
"""What answers say when the store did not."""
EMPTY_WORDS = frozenset({"no_history", "corrupt_history"})
"""What they say when a history was empty for it."""


def lacks_store(kind: Kind) -> bool:
    """The answer was made with less than the store has."""
    return not STORE_WORDS.isdisjoint(kind.degraded)


def lacks_history(kind: Kind) -> bool:
    return not EMPTY_WORDS.isdisjoint(kind.degraded)


def is_good(kind: Kind) -> bool:
    return kind.status == 200


def wrong_answers(load: LoadResult, bodies: Sequence[bytes]) -> list[str]:
    """What is wrong with the answers 2xx that were kept.  bodies: the lines that were sent."""
    found = (wrong_answer(json.loads(bodies[answer.body]), json.loads(answer.text)) for answer in load.answers)
    return [wrong for wrong in found if wrong is not None]


def wrong_answer(asked: dict[str, Any], answer: dict[str, Any]) -> str | None:
    """None when it is right: the best of the candidates, each once, sorted, with probabilities."""
    rows = answer["ranking"]
    if len(rows) != min(len(asked["candidates"]), asked.get("top_k") or len(asked["candidates"])):
        return f"{len(rows)} authors"
    authors = {str(row["author_id"]) for row in rows}
    if len(authors) != len(rows) or not authors <= set(map(str, asked["candidates"])):
        return "authors that were not asked for, or twice"
    numbers = [probability for row in rows for probability in row["xtr"].values()]
    if not all(_is_number(number) and 0 <= number <= 1 for number in numbers):
        return "a probability is outside 0..1"
    scores = [row["score"] for row in rows]
    if not all(map(_is_number, scores)) or any(later > earlier for earlier, later in pairwise(scores)):
        return "not sorted by score"
    return None


def _is_number(value: Any) -> bool:
    """NaN comes as null."""
    return isinstance(value, int | float) and math.isfinite(value)
