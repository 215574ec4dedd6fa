"""Student's t against tables, intervals against hand and simulation, Holm against hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from model.study.statistics import Estimate, estimate, holm, incomplete_beta, t_quantile, two_sided_p

# Student's t

TABLE = [  # confidence of a two-sided interval, degrees of freedom, t; 1 and 2 have closed forms
    (0.95, 1, math.tan(0.475 * math.pi)),
    (0.95, 2, 0.95 * math.sqrt(2 / (1 - 0.95**2))),
    (0.99, 2, 0.99 * math.sqrt(2 / (1 - 0.99**2))),
    (0.90, 4, 2.131846786),
    (0.95, 4, 2.776445105),
    (0.95, 5, 2.570581836),
    (0.95, 10, 2.228138852),
    (0.99, 10, 3.169272673),
    (0.95, 30, 2.042272456),
    (0.95, 100, 1.983971519),
    (0.999, 4, 8.610301581),
]


@pytest.mark.parametrize(("confidence", "freedom", "t"), TABLE)
def test_quantiles_are_those_of_the_tables(confidence: float, freedom: int, t: float) -> None:
    assert t_quantile(1 - confidence, freedom) == pytest.approx(t, abs=1e-6)
    assert two_sided_p(t, freedom) == pytest.approx(1 - confidence, abs=1e-8)


@pytest.mark.parametrize("freedom", [1.0, 2.5, 4.0, 17.3, 302.0])
@pytest.mark.parametrize("t", [0.0, 0.01, 1.0, 5.0, 40.0])
def test_p_is_the_area_under_the_density(freedom: float, t: float) -> None:
    # The substitution t = sqrt(f) tan(a) turns the density into cos(a)^(f - 1) on a finite interval.
    def area(start: float) -> float:
        a = np.linspace(start, math.pi / 2, 200_001)
        return float(np.trapezoid(np.cos(a) ** (freedom - 1), a))

    assert two_sided_p(t, freedom) == pytest.approx(area(math.atan(t / math.sqrt(freedom))) / area(0), abs=1e-8)


def test_the_incomplete_beta_function_at_its_edges_and_mirrored() -> None:
    assert incomplete_beta(2.0, 3.0, 0.0) == 0
    assert incomplete_beta(2.0, 3.0, 1.0) == 1
    assert incomplete_beta(1.0, 1.0, 0.3) == pytest.approx(0.3, abs=1e-14)
    assert incomplete_beta(3.0, 0.5, 0.9) == pytest.approx(1 - incomplete_beta(0.5, 3.0, 0.1), abs=1e-14)


def test_a_very_small_p_keeps_its_digits() -> None:
    assert two_sided_p(1e6, 2) == pytest.approx(1e-12, rel=1e-5)  # 1 - t / sqrt(2 + t^2)


# One comparison


def test_an_estimate_by_hand() -> None:
    differences = np.array([[1.0, 2.0, 0.0, 4.0], [3.0, 0.0, 2.0, 2.0]])
    one = estimate(differences)
    training = 2.0 / 2  # variance of 1, 3 over two seeds
    users = float(np.var([1.0, 1.0, 3.0], ddof=1))
    assert one.difference == 2.0
    assert one.error == pytest.approx(math.sqrt(training + users))
    assert one.freedom == pytest.approx((training + users) ** 2 / (training**2 / 1 + users**2 / 2))


def test_equal_models_differ_by_nothing() -> None:
    one = estimate(np.zeros((3, 5)))
    assert (one.difference, one.error, one.p(), one.interval()) == (0.0, 0.0, 1.0, (0.0, 0.0))


@pytest.mark.parametrize(("shape", "why"), [((1, 9), "1 seeds"), ((3, 2), "1 draws")])
def test_too_little_for_an_interval_is_refused(shape: tuple[int, int], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        estimate(np.ones(shape))


def test_a_difference_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        estimate(np.array([[1.0, np.nan, 2.0], [1.0, 2.0, 3.0]]))


@pytest.mark.parametrize("alpha", [0.2, 0.05, 0.001])
def test_the_interval_leaves_zero_out_exactly_when_p_is_below_alpha(alpha: float) -> None:
    reach = t_quantile(alpha, 4.0)
    for difference in (reach * 1.0001, reach * 0.9999):
        one = Estimate(difference, 1.0, 4.0)
        assert (one.interval(alpha)[0] > 0) == (one.p() < alpha) == (difference > reach)


# A family


def of_p(*values: float) -> list[Estimate]:
    return [Estimate(t_quantile(p, 9.0), 1.0, 9.0) for p in values]


def test_holm_by_hand() -> None:
    family = of_p(0.04, 0.001, 0.03, 0.012)
    answers = holm(family)
    # Sorted .001 .012 .03 .04 times 4 3 2 1, and never falling.
    assert [a.p for a in answers] == pytest.approx([0.06, 0.004, 0.06, 0.036])
    # .001 < .05 / 4 and .012 < .05 / 3, but .03 > .05 / 2: the level stays there.
    for one, answer, level in zip(family, answers, (0.05 / 2, 0.05 / 4, 0.05 / 2, 0.05 / 3), strict=True):
        assert answer.interval == one.interval(level)


def test_a_family_of_one_is_not_corrected() -> None:
    (one,) = of_p(0.03)
    assert holm([one])[0].interval == one.interval()
    assert holm([one])[0].p == one.p()
    assert holm([]) == []


def test_corrected_intervals_say_what_the_test_says() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        family = [Estimate(rng.normal(2.5, 1.5), 1.0, 9.0) for _ in range(6)]
        for one, answer in zip(family, holm(family), strict=True):
            low, high = answer.interval
            assert (low > 0 or high < 0) == (answer.p < 0.05)
            assert answer.p >= one.p()
            assert low <= one.interval()[0]


# By simulation: a study's differences are truth + training noise per seed + noise of the users' sample.

SEEDS, DRAWS = 5, 120


def simulated(rng: np.random.Generator, truth: float, training: float, users: float) -> Estimate:
    """The estimate of one study."""
    values = np.empty((SEEDS, DRAWS + 1))
    values[:, 0] = truth + rng.normal(0, training, SEEDS) + rng.normal(0, users)
    values[:, 1:] = values[:, :1] + rng.normal(0, users, DRAWS)  # a draw moves all seeds alike
    return estimate(values)


@pytest.mark.parametrize(("training", "users"), [(1.0, 0.1), (1.0, 1.0), (0.1, 1.0)])
def test_the_interval_holds_the_truth_95_times_of_100(training: float, users: float) -> None:
    rng = np.random.default_rng(1)
    studies = [simulated(rng, 0.7, training, users).interval() for _ in range(600)]
    held = float(np.mean([low <= 0.7 <= high for low, high in studies]))
    assert held == pytest.approx(0.95, abs=0.027)  # three standard errors of 600 studies


@pytest.mark.parametrize(("training", "users"), [(1.0, 0.1), (1.0, 1.0), (0.1, 1.0)])
def test_a_null_family_leaves_zero_out_at_most_5_times_of_100(training: float, users: float) -> None:
    rng = np.random.default_rng(2)
    families = [[simulated(rng, 0.0, training, users) for _ in range(6)] for _ in range(300)]
    wrong = float(np.mean([min(answer.p for answer in holm(family)) < 0.05 for family in families]))
    assert 0.01 < wrong < 0.05 + 0.038  # three standard errors of 300 families
