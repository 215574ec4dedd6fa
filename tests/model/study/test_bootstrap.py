"""The user bootstrap against plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from model.metrics import task_metrics
from model.study import bootstrap as module
from model.study.bootstrap import FIGURES, bootstrap, draw_users, drawn_auc, interval


def sample(n: int = 300, users: int = 20, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Scores with ties, labels, users, pages."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 12, n) / 12
    return scores, (rng.random(n) < 0.2 + 0.5 * scores).astype(int), rng.integers(0, users, n), rng.integers(0, 3, n)


def test_the_first_draw_is_the_sample() -> None:
    scores, labels, users, pages = sample()
    figures = bootstrap(scores, labels, users, users * 3 + pages, draw_users(users, 5))
    exact = task_metrics(scores, labels, users, pages)
    for name in FIGURES:
        assert getattr(figures, name)[0] == pytest.approx(getattr(exact, name), abs=1e-12)


def test_a_draw_is_the_figure_of_the_users_drawn() -> None:
    scores, labels, users, pages = sample()
    draws = draw_users(users, 20, seed=3)
    figures = bootstrap(scores, labels, users, users * 3 + pages, draws)
    for draw in range(1, 20):
        # A user drawn k times is k users with the same samples.
        times = draws.times[draw][np.searchsorted(draws.users, users)]
        rows = np.repeat(np.arange(len(users)), times)
        copy = np.concatenate([np.arange(k) for k in times])
        drawn_users = users[rows] * 100 + copy
        exact = task_metrics(scores[rows], labels[rows], drawn_users, pages[rows])
        for name in FIGURES:
            assert getattr(figures, name)[draw] == pytest.approx(getattr(exact, name), abs=1e-12), name


def test_as_many_users_are_drawn_as_there_are() -> None:
    _, _, users, _ = sample()
    draws = draw_users(users, 50)
    assert draws.users.tolist() == sorted(set(users.tolist()))
    assert (draws.times[0] == 1).all()
    assert (draws.times.sum(1) == len(draws.users)).all()
    assert len({tuple(times) for times in draws.times.tolist()}) == 50


def test_blocks_of_draws_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, labels, users, _ = sample()
    draws = draw_users(users, 11)
    whole = drawn_auc(scores, labels, users, draws)
    monkeypatch.setattr(module, "_BLOCK", 700)  # two draws at once, and one that is left over
    assert (drawn_auc(scores, labels, users, draws) == whole).all()


def test_users_beyond_the_samples_change_nothing_but_the_draws() -> None:
    scores, labels, users, _ = sample()
    draws = draw_users(np.concatenate([users, [-5, 1000]]), 5)
    assert drawn_auc(scores, labels, users, draws)[0] == drawn_auc(scores, labels, users, draw_users(users, 5))[0]


def test_one_class_alone_is_nan() -> None:
    scores, _, users, _ = sample()
    for labels in (np.zeros(len(users), int), np.ones(len(users), int)):
        assert np.isnan(drawn_auc(scores, labels, users, draw_users(users, 3))).all()


def test_the_interval_leaves_the_sample_itself_out() -> None:
    value, low, high = interval(np.concatenate([[100.0], np.arange(101.0)]))
    assert (value, low, high) == (100.0, 2.5, 97.5)
