"""Requests whose candidates are all objects of integers take a shorter way, which must lead to the same."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store.schema import MISSING
from service.errors import InvalidRequestError, MalformedBodyError
from service.parse import Query, parse_query

IDS = st.one_of(st.integers(-(2**63) - 2, 2**63 + 2), st.integers(-3, 3))
ROOMS = st.fixed_dictionaries({"author_id": IDS}, optional={"live_id": st.one_of(st.none(), IDS)})
ODD = st.one_of(st.just({"author_id": "7"}), st.just({"live_id": 1}), st.just({"author_id": 1.5}), st.just("8"))
REQUESTS = st.fixed_dictionaries(
    {"user_id": st.integers(0, 5), "candidates": st.lists(st.one_of(ROOMS, ROOMS, ODD), max_size=6)},
    optional={"top_k": st.integers(0, 3), "debug": st.just(True), "x": st.just(1)},
)


def outcome(body: dict[str, object]) -> object:
    """What is made of a request, or the fields and messages of its refusal."""
    try:
        query = parse_query(json.dumps(body).encode(), "integer")
    except InvalidRequestError as error:
        return error.errors
    return query.user_id, query.author_ids.tolist(), query.live_ids.tolist(), query.top_k, query.debug


@given(REQUESTS)
def test_objects_of_integers_are_as_objects_of_strings(body: dict[str, object]) -> None:
    """A first candidate with a string id takes the long way."""
    last = {"author_id": "99", "live_id": None}
    long, short = outcome({**body, "candidates": [*body["candidates"], last]}), outcome(body)
    if isinstance(long[0], tuple) or isinstance(short[0], tuple):  # refused
        if body["candidates"]:
            assert long == short
    else:
        assert (long[0], long[1][:-1], long[2][:-1], *long[3:]) == short


def parsed(candidates: object) -> Query:
    return parse_query(json.dumps({"user_id": 1, "candidates": candidates}).encode(), "integer")


def test_what_is_made_of_each_kind_of_candidate() -> None:
    for candidates in ([5, {"author_id": "6", "live_id": 7}], [{"author_id": 5}, {"author_id": 6, "live_id": 7}]):
        query = parsed(candidates)
        assert query.author_ids.tolist() == [5, 6]
        assert query.live_ids.tolist() == [MISSING, 7]
        assert query.author_ids.dtype == query.live_ids.dtype == np.int64
    assert parsed([{"author_id": 5, "live_id": 1}, {"author_id": 5, "live_id": 2}]).author_ids.tolist() == [5, 5]


@pytest.mark.parametrize(
    ("candidates", "field", "message"),
    [
        ([{"author_id": 1}, {"author_id": 1, "live_id": None}], "candidates[1]", "as candidates[0]"),
        ([{"author_id": 1, "live_id": 2**63}], "candidates[0].live_id", "must be within"),
        ([{"author_id": 1}, {"author_id": 2, "live_id": 2, "x": 1}], "candidates[1].x", "unknown field"),
        ([{"author_id": 1}, {}], "candidates[1].author_id", "is required"),
        ([{"author_id": 1}, {"author_id": True}], "candidates[1].author_id", "not true"),
        ([{"author_id": i} for i in range(2001)], "candidates", "not 2001"),
    ],
)
def test_a_wrong_object_among_good_ones_is_named(candidates: object, field: str, message: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        parsed(candidates)
    assert refused.value.errors[0][0] == field
    assert message in refused.value.errors[0][1]


def test_objects_that_are_no_json() -> None:
    with pytest.raises(MalformedBodyError, match="not JSON"):
        parse_query(b'{"user_id": 1, "candidates": [{"author_id": 1}', "integer")
