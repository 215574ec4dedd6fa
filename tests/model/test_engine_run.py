"""Engine.run: several users at once give what each gives alone, bit for bit where states are kept."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import Exported

from feature_store.matrices import UserInputs
from model.artifact.engine import BatchCost, Engine, EngineError, Piece, Scored, UserState
from model.artifact.host import MOST_USERS, HostTowers
from model.golden import random_candidates, random_users, torch_probabilities

LENGTHS = [(0, 0), (1, 0), (0, 2), (7, 3), (50, 50), (49, 50), (50, 1)]


def one(users: UserInputs, row: int) -> UserInputs:
    return UserInputs(**{name: array[row : row + 1] for name, array in users.feeds().items()})


def pieces_of(engine: Engine, counts: list[int], seed: int = 0) -> list[Piece]:
    users = random_users(engine.view, LENGTHS, seed)
    return [
        Piece(one(users, i % len(LENGTHS)), None, random_candidates(engine.view, (1, c), seed + i)[0])
        for i, c in enumerate(counts)
    ]


def same(left: UserState, right: UserState) -> bool:
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


def alone(engine: Engine, piece: Piece) -> Scored:
    (scored,), _ = engine.run([piece])
    return scored


@pytest.mark.parametrize("counts", [[1], [200], [2000], [50, 50], [200, 1, 37, 64, 5], [3] * 12, [0, 5], [0], [0, 0]])
def test_every_piece_gets_what_it_gets_alone_and_what_pytorch_gives(farm: Exported, counts: list[int]) -> None:
    pieces = pieces_of(farm.engine, counts)
    scored, cost = farm.engine.run(pieces)
    assert (cost.users, cost.candidates) == (len(counts), sum(counts))
    assert cost.places >= cost.candidates
    for piece, got in zip(pieces, scored, strict=True):
        assert got.probabilities.shape == (len(piece.candidates), 6)
        assert got.probabilities.dtype == np.float32
        assert piece.users is not None
        plain = torch_probabilities(farm.model, piece.users, piece.candidates[None], np.zeros(1, np.int64))[0]
        np.testing.assert_allclose(got.probabilities, plain, rtol=0, atol=1e-5)
        np.testing.assert_allclose(got.probabilities, alone(farm.engine, piece).probabilities, rtol=0, atol=2e-6)


@pytest.mark.parametrize("users", [2, 7, 8, 9, 17])
def test_a_state_is_the_same_whoever_else_is_in_the_batch(farm: Exported, users: int) -> None:
    """Up to eight users are one run of the user tower."""
    pieces = pieces_of(farm.engine, [5, 80, 1, 20, 7, 9, 3, 4, 2] * 2)[:users]
    together, _ = farm.engine.run(pieces)
    for piece, scored in zip(pieces, together, strict=True):
        assert same(scored.state, alone(farm.engine, piece).state)
        assert sum(array.nbytes for array in scored.state.values()) == farm.engine.state_bytes
        assert not any(isinstance(array.base, np.ndarray) for array in scored.state.values())  # keeps no other user's


class OneInBatches(HostTowers):
    """As on a machine whose kernels sum a batch in another order."""

    def user_state(self, users: UserInputs) -> UserState:
        state = super().user_state(users)
        if len(users.now) > 5:
            state["values"][-1] *= np.float32(1 + 2**-23)
        return state


def test_users_run_together_only_where_that_is_exact(farm: Exported, caplog: pytest.LogCaptureFixture) -> None:
    assert HostTowers(farm.engine.artifact, threads=1).users_at_once == MOST_USERS > 1
    assert not caplog.records
    towers = OneInBatches(farm.engine.artifact, threads=1)
    assert towers.users_at_once == 1
    assert "states of 6 users at once" in caplog.text
    pieces = pieces_of(farm.engine, [3] * 7)
    for scored, expected in zip(towers.run(pieces)[0], farm.engine.run(pieces)[0], strict=True):
        assert same(scored.state, expected.state)


def test_a_kept_state_gives_bit_for_bit_what_a_new_one_gives(farm: Exported) -> None:
    pieces = pieces_of(farm.engine, [64, 200, 31])
    new, first = farm.engine.run(pieces)
    kept = [Piece(None, scored.state, piece.candidates) for piece, scored in zip(pieces, new, strict=True)]
    again, second = farm.engine.run(kept)
    assert (first.users, second.users) == (3, 0)
    assert all(np.array_equal(a.probabilities, b.probabilities) for a, b in zip(new, again, strict=True))
    mixed, third = farm.engine.run([pieces[0], kept[1], pieces[2]])
    assert third.users == 2
    assert all(np.array_equal(a.probabilities, b.probabilities) for a, b in zip(new, mixed, strict=True))


def test_results_and_states_outlive_later_runs(farm: Exported) -> None:
    """What is reused by a thread is neither handed out nor kept."""
    first, _ = farm.engine.run(pieces_of(farm.engine, [20, 30], seed=1))
    before = [(s.probabilities.copy(), {n: a.copy() for n, a in s.state.items()}) for s in first]
    farm.engine.run(pieces_of(farm.engine, [20, 30], seed=2))
    for scored, (probabilities, state) in zip(first, before, strict=True):
        assert np.array_equal(scored.probabilities, probabilities)
        assert same(scored.state, state)


def test_threads_run_one_engine_at_once(farm: Exported) -> None:
    batches = [pieces_of(farm.engine, counts, seed) for seed, counts in enumerate([[40, 3], [9, 9, 9], [120], [1, 64]])]
    expected = [[s.probabilities for s in farm.engine.run(batch)[0]] for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda batch: farm.engine.run(batch)[0], batches * 5))
    for scored, wanted in zip(found, expected * 5, strict=True):
        assert all(np.array_equal(s.probabilities, w) for s, w in zip(scored, wanted, strict=True))


def test_the_cost_of_a_run(farm: Exported) -> None:
    pieces = pieces_of(farm.engine, [64, 32])
    _, cost = farm.engine.run(pieces)
    assert (cost.users, cost.tiles, cost.places, cost.candidates) == (2, 3, 96, 96)
    assert isinstance(cost, BatchCost)
    assert 0 < cost.user_tower_cpu_s < 5
    assert 0 < cost.candidate_tower_cpu_s < 5
    assert cost.user_tower_s > 0
    assert cost.candidate_tower_s > 0


def test_a_piece_without_users_and_without_state_is_refused(farm: Exported) -> None:
    candidates = random_candidates(farm.engine.view, (1, 2), 0)[0]
    with pytest.raises(ValueError, match=r"piece\.users"):
        farm.engine.run([Piece(None, None, candidates)])


@pytest.mark.parametrize("order", ["", "cpu,cpu", "gpu", "cpu,", ("cuda", "cuda")])
def test_an_order_of_providers_that_is_none_is_refused(farm: Exported, order: str | tuple[str, ...]) -> None:
    with pytest.raises(EngineError, match="provider"):
        Engine.load(farm.path, order)
