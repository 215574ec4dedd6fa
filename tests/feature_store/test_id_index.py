"""The index of ids against a dictionary."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from feature_store.id_index import NONE, IdIndex

IDS = st.one_of(st.integers(-8, 8), st.integers(-(2**63) + 1, 2**63 - 1))
STEPS = st.lists(st.tuples(IDS, st.one_of(st.none(), st.integers(0, 2**31 - 1))), max_size=60)


def put(index: IdIndex, each: int, number: int) -> None:
    index.put(np.array([each]), np.array([number], np.int32))


@given(STEPS, st.lists(IDS, max_size=20))
def test_it_is_a_dictionary(steps: list[tuple[int, int | None]], asked: list[int]) -> None:
    index, plain = IdIndex(), dict[int, int]()
    for each, number in steps:
        assert index.remove(np.array([each])).tolist() == [plain.pop(each, NONE)]
        if number is not None:
            put(index, each, number)
            plain[each] = number
    asked = [*asked, *plain]
    assert index.find(np.array(asked, np.int64)).tolist() == [plain.get(each, NONE) for each in asked]
    assert [each in index for each in asked] == [each in plain for each in asked]
    assert len(index) == len(plain)


def test_thousands_that_come_and_go() -> None:
    rng = np.random.default_rng(1)
    index, plain = IdIndex(), dict[int, int]()
    for number in range(300):
        some = rng.choice(5_000, rng.integers(1, 200), replace=False) * 4096  # in a row, with equal lower bits
        had = [plain.pop(each, NONE) for each in some.tolist()]
        assert index.remove(some).tolist() == had
        if rng.random() < 0.6:
            index.put(some, np.full(len(some), number, np.int32))
            plain.update(dict.fromkeys(some.tolist(), number))
    asked = np.arange(0, 6_000 * 4096, 4096)
    assert index.find(asked).tolist() == [plain.get(each, NONE) for each in asked.tolist()]
    assert len(index) == len(plain)


def test_full_buckets_spill() -> None:
    index = IdIndex()
    many = np.arange(5000)
    same = many[index._buckets(many) == 3][:20]
    index.put(same, np.arange(20, dtype=np.int32))
    assert len(index._spilt) == 12
    assert index.find(same).tolist() == list(range(20))
    assert index.remove(same[::2]).tolist() == list(range(0, 20, 2))
    index.put(same[::2], np.arange(100, 110, dtype=np.int32))
    expected = [100 + row // 2 if row % 2 == 0 else row for row in range(20)]
    assert index.find(same).tolist() == expected
    assert len(index) == 20


def test_nothing_is_there_when_it_is_cleared() -> None:
    index = IdIndex()
    put(index, 1, 5)
    index.clear()
    assert index.find(np.array([1])).tolist() == [NONE]
    assert len(index) == 0
