"""Packed authors against the plain mapping that they stand for."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from feature_store.authors import Authors, AuthorTable
from feature_store.records import records_from_columns
from feature_store.schema import MISSING, default_schema

SCHEMA = default_schema()
LIVES = st.lists(st.tuples(st.sampled_from([None, *range(5)]), st.sampled_from([None, 1, -3])), max_size=3)
KNOWN = st.dictionaries(st.sampled_from([-(2**63) + 1, -1, 0, 1, 2, 3, 2**63 - 1]), LIVES, max_size=6)


def records(author: int, lives: list[tuple[int | None, int | None]]) -> np.ndarray:
    columns = {"author_id": [author] * len(lives), "live_id": [live for live, _ in lives]}
    return records_from_columns(SCHEMA, "author", {**columns, "tag": [tag for _, tag in lives]})


def plain(known: dict[int, list[tuple[int | None, int | None]]]) -> dict[int, np.ndarray]:
    return {author: records(author, lives) for author, lives in known.items()}


def shown(authors: Authors | dict[int, np.ndarray]) -> dict[int, list[tuple[int, ...]]]:
    """Those that have rooms."""
    return {author: rooms.tolist() for author, rooms in authors.items() if len(rooms)}


@given(KNOWN, st.lists(st.integers(-2, 4), max_size=8))
def test_a_table_gives_what_was_put(known: dict[int, list[tuple[int | None, int | None]]], asked: list[int]) -> None:
    table, rooms = AuthorTable(), plain(known)
    table.add([*known, *asked], rooms)
    found, absent = table.find(np.array(asked, np.int64))
    assert not absent.any()
    assert shown(found) == {author: lives for author, lives in shown(rooms).items() if author in asked}
    assert all(lives.dtype == SCHEMA.dtype("author") for lives in found.values())
    newest = [shown(rooms)[author][-1] if author in shown(rooms) else None for author in asked]
    assert found.known.tolist() == [row is not None for row in newest]
    least = np.iinfo(np.int16).min
    wide = [[MISSING] * 4 if row is None else [MISSING if v == least else v for v in row] for row in newest]
    assert found.newest.tolist() == (wide if found.dtype.names else [[]] * len(asked))


@given(KNOWN, KNOWN)
def test_a_union_is_that_of_the_mappings(
    one: dict[int, list[tuple[int | None, int | None]]], two: dict[int, list[tuple[int | None, int | None]]]
) -> None:
    table = AuthorTable()
    table.add([*one, 77], plain(one))
    mine, _ = table.find(np.array([*one, 77], np.int64))
    assert shown(mine | plain(two)) == shown(plain(one)) | shown(plain(two))
    assert shown(mine | Authors.of(plain(two))) == shown(plain(one)) | shown(plain(two))


def test_what_was_taken_stays() -> None:
    table = AuthorTable()
    table.add([1, 2], plain({1: [(10, 1)], 2: [(20, 2), (21, 2)]}))
    found, _ = table.find(np.array([1, 2]))
    table.remove(1)
    table.add([3, 2], plain({3: [(30, 3)], 2: [(22, 2)]}))
    assert {author: rooms["live_id"].tolist() for author, rooms in found.items()} == {1: [10], 2: [20, 21]}
    assert (len(table), 1 in table, 2 in table) == (2, False, True)
    table.clear()
    assert len(table) == 0


def test_who_was_never_put_is_absent() -> None:
    table = AuthorTable()
    assert table.find(np.array([1]))[1].tolist() == [True]
    table.add([1], {})
    found, absent = table.find(np.array([2, 1]))
    assert (dict(found), found.ids.tolist(), absent.tolist()) == ({}, [1], [True, False])
    assert table.remove(1)
    assert not table.remove(1)


def test_rows_are_used_again() -> None:
    table = AuthorTable()
    for number in range(300):
        table.add([number], plain({number: [(number, 1)]}))
        if number >= 20:
            table.remove(number - 20)
    assert len(table) == 20
    last = np.arange(280, 300)
    assert table.find(last)[0].newest[:, 1].tolist() == last.tolist()
    assert len(table._newest) <= 64


def test_rooms_that_are_lacking() -> None:
    found = Authors.of(plain({1: [(10, 1), (11, 1)], 2: [(None, 1)]}))
    ids = found.ids.tolist()
    assert ids == [1, 2]
    assert found.lacking(np.array([MISSING, MISSING])) == []
    assert found.lacking(np.array([10, 5])) == [(2, 5)]
    assert found.lacking(np.array([12, MISSING])) == [(1, 12)]
    assert Authors.of({}).lacking(np.empty(0, np.int64)) == []


def test_authors_in_another_order() -> None:
    found = Authors.of(plain({1: [(10, 1)], 2: [(20, 2)]}))
    newest, known = found.take(np.array([2, 3, 1, 2]))
    assert newest[:, 1].tolist() == [20, MISSING, 10, 20]
    assert known.tolist() == [True, False, True, True]
