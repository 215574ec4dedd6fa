"""The index of ids against a dictionary."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from feature_store.id_index import NONE, IdIndex

IDS = st.one_of(st.integers(-8, 8), st.integers(-(2**63) + 1, 2**63 - 1))
STEPS = st.lists(st.tuples(IDS, st.one_of(st.none(), st.integers(0, 2**31 - 1))), max_size=60)


@given(STEPS, st.lists(IDS, max_size=20))
def test_it_is_a_dictionary(steps: list[tuple[int, int | None]], asked: list[int]) -> None:
    index, plain = IdIndex(), dict[int, int]()
    for each, number in steps:
        if number is None:
            assert index.remove(each) == plain.pop(each, NONE)
        else:
            index.put(each, number)
            plain[each] = number
    asked = [*asked, *plain]
    assert index.find(np.array(asked, np.int64)).tolist() == [plain.get(each, NONE) for each in asked]
    assert [each in index for each in asked] == [each in plain for each in asked]
    assert len(index) == len(plain)


def test_thousands_that_come_and_go() -> None:
    rng = np.random.default_rng(1)
    index, plain = IdIndex(), dict[int, int]()
    for number in range(20_000):
        each = int(rng.integers(5_000)) * 4096  # in a row, with equal lower bits
        if rng.random() < 0.6:
            index.put(each, number)
            plain[each] = number
        else:
            assert index.remove(each) == plain.pop(each, NONE)
    asked = np.arange(0, 6_000 * 4096, 4096)
    assert index.find(asked).tolist() == [plain.get(each, NONE) for each in asked.tolist()]


def test_full_buckets_spill() -> None:
    index = IdIndex()
    same = [each for each in range(5000) if index._bucket(each) == 3][:20]
    for number, each in enumerate(same):
        index.put(each, number)
    assert index.find(np.array(same)).tolist() == list(range(20))
    for each in same[:10]:
        index.remove(each)
    for number, each in enumerate(same):
        index.put(each, 100 + number)
    assert index.find(np.array(same)).tolist() == list(range(100, 120))
    assert len(index) == 20


def test_nothing_is_there_when_it_is_cleared() -> None:
    index = IdIndex()
    index.put(1, 5)
    index.clear()
    assert index.find(np.array([1])).tolist() == [NONE]
    assert len(index) == 0
