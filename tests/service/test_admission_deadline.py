"""Deadlines, and what a body says of its cost before it is parsed."""

from __future__ import annotations

import math

import orjson
import pytest

from service.admission.deadline import NEVER, Deadline
from service.admission.guess import guess_candidates


def test_a_deadline_is_reached_and_stays_so() -> None:
    deadline = Deadline.after(now=10.0, limit_ms=250)
    assert deadline == Deadline(10.25)
    assert [deadline.left_s(now) for now in (10.0, 10.125, 10.25, 11.0)] == [0.25, 0.125, 0.0, 0.0]
    assert [deadline.has_passed(now) for now in (10.0, 10.249, 10.25, 11.0)] == [False, False, True, True]
    assert NEVER.left_s(1e9) == math.inf
    assert not NEVER.has_passed(1e9)


@pytest.mark.parametrize("count", [1, 2, 50, 2000])
@pytest.mark.parametrize("more", [{}, {"top_k": 50}, {"top_k": 50, "page": None, "now_ms": 1, "debug": True}])
def test_candidates_are_counted_in_the_bytes(count: int, more: dict[str, int | bool | None]) -> None:
    plain = [900 + n for n in range(count)]
    rooms = [{"author_id": author, "live_id": 7 * author} for author in plain]
    for candidates in (plain, [str(author) for author in plain], rooms):
        assert guess_candidates(orjson.dumps({"user_id": 1, "candidates": candidates, **more})) == count


@pytest.mark.parametrize("body", [b"", b"{", b"}{", b"[]", b"null", b",:" * 9, b"::::", b"\xff\x00"])
def test_a_guess_never_fails(body: bytes) -> None:
    assert guess_candidates(body) >= 1
