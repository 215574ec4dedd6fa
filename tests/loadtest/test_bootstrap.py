"""The user bootstrap against plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from loadtest.bench.bootstrap import FIGURES, bootstrap, interval, user_draws
from model.metrics import task_metrics


def sample(n: int = 300, users: int = 20, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Scores with ties, labels, users, pages."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 12, n) / 12
    return scores, (rng.random(n) < 0.2 + 0.5 * scores).astype(int), rng.integers(0, users, n), rng.integers(0, 3, n)


def test_the_first_draw_is_the_sample() -> None:
    scores, labels, users, pages = sample()
    figures = bootstrap(scores, labels, users, users * 3 + pages, user_draws(users, 5))
    exact = task_metrics(scores, labels, users, pages)
    for name in FIGURES:
        assert getattr(figures, name)[0] == pytest.approx(getattr(exact, name), abs=1e-12)


def test_a_draw_is_the_figure_of_the_users_drawn() -> None:
    scores, labels, users, pages = sample()
    weights = user_draws(users, 20, seed=3)
    figures = bootstrap(scores, labels, users, users * 3 + pages, weights)
    for draw in range(1, 20):
        # A user drawn k times is k users with the same samples.
        rows = np.repeat(np.arange(len(users)), weights[draw])
        copy = np.concatenate([np.arange(k) for k in weights[draw]])
        drawn_users = users[rows] * 100 + copy
        exact = task_metrics(scores[rows], labels[rows], drawn_users, pages[rows])
        for name in FIGURES:
            assert getattr(figures, name)[draw] == pytest.approx(getattr(exact, name), abs=1e-12), name


def test_users_are_drawn_whole_and_as_many_as_there_are() -> None:
    _, _, users, _ = sample()
    weights = user_draws(users, 50)
    for user in np.unique(users):
        assert (np.ptp(weights[:, users == user], axis=1) == 0).all()
    first = np.unique(users, return_index=True)[1]
    assert (weights[:, first].sum(1) == len(first)).all()


def test_the_interval_leaves_the_sample_itself_out() -> None:
    value, low, high = interval(np.concatenate([[100.0], np.arange(101.0)]))
    assert (value, low, high) == (100.0, 2.5, 97.5)
