"""Packing of candidates into tiles: exact numbers, every place accounted for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.artifact.tiles import best_size, pack

COUNTS = st.lists(st.integers(0, 300), min_size=1, max_size=12)


def matrices(counts: list[int]) -> list[np.ndarray]:
    """Of each user [C, 2], every row another."""
    return [np.stack([np.full(c, user), np.arange(c)], 1) for user, c in enumerate(counts)]


def test_tiles_of_two_users() -> None:
    tiles = pack([5, 2], 3)
    assert (tiles.tiles, tiles.places, tiles.starts) == (3, 9, (0, 6))
    assert tiles.tile_user().tolist() == [0, 0, 1]
    assert tiles.tile_user([40, 7]).tolist() == [40, 40, 7]
    out = np.empty((3, 3, 2), np.int64)
    tiles.fill(matrices([5, 2]), out)
    assert out[:, :, 0].tolist() == [[0, 0, 0], [0, 0, 0], [1, 1, 1]]
    assert out[:, :, 1].tolist() == [[0, 1, 2], [3, 4, 0], [0, 1, 0]]  # pads are the user's first candidate
    assert [part[:, 1].tolist() for part in tiles.cut(out)] == [[0, 1, 2, 3, 4], [0, 1]]


def test_a_user_alone_is_one_tile_of_its_size() -> None:
    tiles = pack([199], 199)
    assert (tiles.tiles, tiles.places, tiles.tile_user().tolist()) == (1, 199, [0])


def test_a_user_without_candidates_has_no_tile() -> None:
    tiles = pack([0, 4, 0], 4)
    assert (tiles.tiles, tiles.starts, tiles.tile_user().tolist()) == (1, (0, 0, 4), [1])
    out = np.empty((1, 4, 2), np.int64)
    tiles.fill(matrices([0, 4, 0]), out)
    assert [len(part) for part in tiles.cut(out)] == [0, 4, 0]


@given(COUNTS, st.integers(1, 64))
def test_what_is_filled_in_is_what_is_cut_out(counts: list[int], size: int) -> None:
    tiles = pack(counts, size)
    assert tiles.tiles == sum(-(-count // size) for count in counts)
    assert len(tiles.tile_user()) == tiles.tiles
    out = np.full((tiles.tiles, size, 2), -1)
    tiles.fill(matrices(counts), out)
    assert (out >= 0).all()
    assert (out[:, :, 0] == tiles.tile_user()[:, None]).all()
    for part, matrix in zip(tiles.cut(out), matrices(counts), strict=True):
        assert np.array_equal(part, matrix)


@pytest.mark.parametrize(
    ("counts", "size"),
    [
        ([200], 200),
        ([50, 50, 50], 50),  # no pads
        ([200, 50, 50], 50),  # 6 tiles of 50, no pads; 3 tiles of 200 would be 600 places
        ([500, 50], 50),
        ([3, 1], 3),  # 2 x (3 + 1) = 8, as 4 x (1 + 1): of equals the greatest
        ([0, 0], 1),
        ([2000, 1], 250),  # 9 x (250 + 1) = 2259; the least that 8 equal parts of a user give
    ],
)
def test_the_size_with_the_least_cost(counts: list[int], size: int) -> None:
    assert best_size(counts, tile_places=1.0) == size


def test_dear_tiles_are_fewer() -> None:
    assert best_size([200, 50, 50], tile_places=0.0) == 50
    assert best_size([200, 150], tile_places=100.0) == 200


@given(COUNTS, st.floats(0, 20))
def test_no_size_of_equal_parts_costs_less(counts: list[int], tile_places: float) -> None:
    def cost(size: int) -> float:
        return pack(counts, size).tiles * (size + tile_places)

    equal_parts = {-(-count // parts) for count in counts if count for parts in range(1, 9)} or {1}
    assert cost(best_size(counts, tile_places)) <= min(cost(size) for size in equal_parts)
