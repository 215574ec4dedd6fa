"""Users in buckets: whole, in order, and no bucket greater than it may be."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from model.datasets.buckets import Tables, partition


def frame(users: np.ndarray) -> pl.DataFrame:
    return pl.DataFrame({"user_id": users, "row": np.arange(len(users))})


def loaded(tables: dict[str, pl.DataFrame], scratch: Path, rows_per_bucket: int) -> list[Tables]:
    lazy = {name: table.lazy() for name, table in tables.items()}
    return [part.load() for part in partition(lazy, scratch, rows_per_bucket)]


@pytest.mark.parametrize("rows_per_bucket", [1, 7, 40, 10_000])
def test_each_user_is_in_one_bucket_with_rows_as_they_came(tmp_path: Path, rows_per_bucket: int) -> None:
    rng = np.random.default_rng(0)
    tables = {"a": frame(rng.integers(-20, 20, 300)), "b": frame(rng.integers(-30, 5, 100))}
    buckets = loaded(tables, tmp_path, rows_per_bucket)
    for name, table in tables.items():
        assert pl.concat([bucket[name] for bucket in buckets]).sort("row").equals(table)
        assert all(bucket[name]["row"].is_sorted() for bucket in buckets)
    users = [set(pl.concat([rows["user_id"] for rows in bucket.values()])) for bucket in buckets]
    assert all(max(a) < min(b) for a, b in pairwise(users))


def test_buckets_are_as_full_as_they_may_be(tmp_path: Path) -> None:
    users = np.repeat(np.arange(50), np.random.default_rng(1).integers(1, 9, 50))
    sizes = [len(bucket["a"]) for bucket in loaded({"a": frame(users)}, tmp_path, 20)]
    assert max(sizes) <= 20
    assert all(a + b > 20 for a, b in pairwise(sizes))


def test_a_user_with_more_rows_than_a_bucket_has_one_alone(tmp_path: Path) -> None:
    users = np.array([1, 2, 2, 2, 2, 2, 3])
    buckets = loaded({"a": frame(users)}, tmp_path, 3)
    assert [sorted(set(bucket["a"]["user_id"])) for bucket in buckets] == [[1], [2], [3]]


def test_a_table_without_rows_of_a_bucket_is_empty(tmp_path: Path) -> None:
    buckets = loaded({"a": frame(np.array([1, 2])), "b": frame(np.array([2], np.int64))}, tmp_path, 1)
    assert [len(bucket["b"]) for bucket in buckets] == [0, 1]
    assert buckets[0]["b"].schema == buckets[1]["b"].schema


def test_extreme_ids_and_no_rows(tmp_path: Path) -> None:
    ends = np.array([2**63 - 1, -(2**63) + 1])
    buckets = loaded({"a": frame(ends)}, tmp_path, 1)
    assert [bucket["a"]["user_id"].to_list() for bucket in buckets] == [[int(ends[1])], [int(ends[0])]]
    assert loaded({"a": frame(np.empty(0, np.int64))}, tmp_path, 1) == []


def test_there_are_never_too_many_buckets(tmp_path: Path) -> None:
    lazy = {"a": frame(np.arange(3_000)).lazy()}
    assert 1 < len(partition(lazy, tmp_path, 1)) <= 501
