"""Of `farm bench peers`: a peer's answers are those of the service."""

from __future__ import annotations

from typing import Any

import orjson

TOLERANCE = 1e-5  # of a score


class OtherAnswerError(RuntimeError):
    """A peer does not answer what the service answers."""


def require_same(ours: bytes, theirs: bytes) -> float:
    """The greatest difference of two rankings' scores, place by place and author by author.

    Authors whose scores are that near may change places, at the end of the ranking with one that was cut off.
    OtherAnswerError when fields, model, degradation, authors or scores differ beyond TOLERANCE.
    """
    mine, other = orjson.loads(ours), orjson.loads(theirs)
    for name, ways in (("fields", sorted), ("model_version", _of("model_version")), ("degraded", _of("degraded"))):
        if ways(mine) != ways(other):
            raise OtherAnswerError(f"{name}: {ways(mine)} here, {ways(other)} there")
    rankings = mine["ranking"], other["ranking"]
    if len(rankings[0]) != len(rankings[1]) or [sorted(r) for r in rankings[0]] != [sorted(r) for r in rankings[1]]:
        raise OtherAnswerError(f"{len(rankings[0])} ranked authors here, {len(rankings[1])} there, or other fields")
    worst = _difference(*rankings)
    if not worst <= TOLERANCE:
        raise OtherAnswerError(f"scores or probabilities differ by {worst:.2g}, allowed is {TOLERANCE:.2g}")
    return worst


def _of(name: str) -> Any:
    return lambda answer: answer[name]


def _difference(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> float:
    """Of scores by place, of all figures by author; an author of one ranking only, its height above the cut."""
    by_place = [abs(a["score"] - b["score"]) for a, b in zip(ours, theirs, strict=True)]
    mine, other = ({(row["author_id"], row["live_id"]): row for row in rows} for rows in (ours, theirs))
    by_author = [_row_difference(mine[key], other[key]) for key in mine.keys() & other.keys()]
    cut = ours[-1]["score"] if ours else 0.0
    alone = [
        abs(rows[key]["score"] - cut) for rows, rest in ((mine, other), (other, mine)) for key in rows.keys() - rest
    ]
    return float(max([0.0, *by_place, *by_author, *alone]))


def _row_difference(a: dict[str, Any], b: dict[str, Any]) -> float:
    if a["xtr"].keys() != b["xtr"].keys():
        return float("inf")
    return float(max(abs(a["score"] - b["score"]), *(abs(a["xtr"][task] - b["xtr"][task]) for task in a["xtr"])))
