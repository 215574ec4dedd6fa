from __future__ import annotations

from hashlib import blake2b

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store.ids import ids_to_int64, to_id64
from feature_store.schema import MISSING

REAL = st.integers(-(2**63) + 1, 2**63 - 1)


@given(REAL)
def test_integers_and_their_decimal_strings_are_themselves(number: int) -> None:
    assert to_id64(number, "integer") == number
    assert to_id64(str(number), "integer") == number
    assert to_id64(number, "string") == number


@pytest.mark.parametrize(
    "value", [True, False, 1.0, 1e20, None, [], {}, "", "x", " 1", "+1", "1.0", "1e3", "007", "-0", "٣"]
)
def test_what_is_no_integer_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="an integer or a decimal string of one"):
        to_id64(value, "integer")


@pytest.mark.parametrize("value", [MISSING, 2**63, 10**30, str(MISSING), str(2**63)])
def test_out_of_range_is_refused_with_the_range(value: object) -> None:
    with pytest.raises(ValueError, match=r"9223372036854775807|decimal"):
        to_id64(value, "integer")


@given(st.text())
def test_strings_are_hashed_as_documented(text: str) -> None:
    digest = blake2b(text.encode()).digest()
    assert to_id64(text, "string") == int.from_bytes(digest[:8], "little", signed=True)


def test_the_hash_does_not_change() -> None:
    assert to_id64("author-1", "string") == 296107654977108585


@pytest.mark.parametrize("value", [True, 1.5, None])
def test_what_is_no_string_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="a string or an integer"):
        to_id64(value, "string")


def test_text_that_is_no_utf8_is_refused() -> None:
    with pytest.raises(ValueError, match="UTF-8"):
        to_id64("\ud800", "string")


def test_columns() -> None:
    assert ids_to_int64([1, "2", None], "integer").tolist() == [1, 2, MISSING]
    assert ids_to_int64(np.array([1, 2], np.int32), "integer").dtype == np.int64
    assert ids_to_int64(np.array(["a", "b", "a"]), "string").tolist() == [to_id64(text, "string") for text in "aba"]
    assert ids_to_int64([], "integer").shape == (0,)


@pytest.mark.parametrize(
    "values", [[1, True], [1, 1.0], [1, []], np.array([1, MISSING]), np.array([5, 2**63], np.uint64)]
)
def test_columns_say_which_row_is_wrong(values: list[object]) -> None:
    with pytest.raises(ValueError, match="row 1: "):
        ids_to_int64(values, "integer")
