"""Paired comparisons over seeds and users: Student's t, intervals, Holm's correction.

Letters: S seeds, B draws of users (the first of them the users themselves), m comparisons of a family.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

ALPHA = 0.05  # two-sided, of an interval and of a family
_TINY = 1e-300


@dataclass(frozen=True)
class Estimate:
    """A mean difference, its standard error and the degrees of freedom of that."""

    difference: float
    error: float
    freedom: float

    def p(self) -> float:
        """Two-sided p-value of "the difference is 0"."""
        if self.error == 0:
            return float(self.difference == 0)
        return two_sided_p(self.difference / self.error, self.freedom)

    def interval(self, alpha: float = ALPHA) -> tuple[float, float]:
        """The interval of confidence 1 - alpha; it leaves 0 out exactly when p() < alpha."""
        reach = 0.0 if self.error == 0 else t_quantile(alpha, self.freedom) * self.error
        return self.difference - reach, self.difference + reach


def estimate(differences: np.ndarray) -> Estimate:
    """The mean over seeds of paired differences, with both reasons why another study would find another mean.

    differences: [S, B], of seed s in draw b; column 0 is the test users themselves.  ValueError when S or B is below 2
    or 3, or a difference is not finite.

    Training: sample variance of column 0 over seeds, divided by S.  All seeds are tested on the same users, so the
    spread of column 0 holds nothing of the users' sample but how seeds and users interact.
    Users: sample variance over the draws of the mean over seeds.  The models are the same in all draws, so it holds
    nothing of the training but that interaction, divided by S.
    The sum counts each reason once, and the interaction twice: it errs to the wide side by interaction / S.
    Degrees of freedom: Satterthwaite's for a sum of variances with S - 1 and B - 2.
    """
    seeds, draws = differences.shape
    if seeds < 2 or draws < 3:
        raise ValueError(f"{seeds} seeds and {draws - 1} draws of users: an interval needs at least 2 of each")
    if not np.isfinite(differences).all():
        raise ValueError("a difference is not finite: some draw of users holds one class only")
    training = float(differences[:, 0].var(ddof=1)) / seeds
    users = float(differences[:, 1:].mean(0).var(ddof=1))
    spread = training**2 / (seeds - 1) + users**2 / (draws - 2)
    freedom = (training + users) ** 2 / spread if spread else float(seeds + draws - 3)
    return Estimate(float(differences[:, 0].mean()), math.sqrt(training + users), freedom)


@dataclass(frozen=True)
class Corrected:
    """One comparison of a family after Holm's correction."""

    p: float  # adjusted: below alpha exactly when Holm's test at alpha rejects
    interval: tuple[float, float]


def holm(family: list[Estimate], alpha: float = ALPHA) -> list[Corrected]:
    """Holm's step-down correction of m comparisons, in their order.

    With p(1) <= ... <= p(m), comparison j is rejected while p(j) < alpha / (m - j + 1), up to the first that is not.
    Its adjusted p is the greatest of (m - i + 1) p(i), i <= j, at most 1.  Its interval has confidence
    1 - alpha / (m - min(j, k) + 1), where k is the first comparison that is not rejected: after it the level stays,
    because the test stops there.  So an interval leaves 0 out exactly when the test rejects, and the chance that any
    interval wrongly leaves 0 out is at most alpha (Holm 1979).  That all intervals hold their true values is not
    promised: for differences that are not 0 each has its own level only.
    """
    m = len(family)
    values = [one.p() for one in family]
    order = sorted(range(m), key=lambda i: values[i])
    corrected: dict[int, Corrected] = {}
    adjusted, level, stopped = 0.0, alpha / max(1, m), False
    for rank, index in enumerate(order):
        left = m - rank
        adjusted = max(adjusted, min(1.0, left * values[index]))
        level = level if stopped else alpha / left
        stopped = stopped or adjusted >= alpha
        corrected[index] = Corrected(adjusted, family[index].interval(level))
    return [corrected[index] for index in range(m)]


def two_sided_p(t: float, freedom: float) -> float:
    """P(|T| > |t|) of Student's t."""
    return incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t))


def t_quantile(alpha: float, freedom: float) -> float:
    """The t that |T| exceeds with probability alpha, 0 < alpha <= 1."""
    low, high = 0.0, 1.0
    while two_sided_p(high, freedom) > alpha:
        low, high = high, 2 * high
    while high - low > 1e-10 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided_p(middle, freedom) > alpha else (low, middle)
    return (low + high) / 2


def incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularised incomplete beta function I_x(a, b), 0 <= x <= 1 (Press et al., Numerical Recipes, section 6.4)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1) / (a + b + 2):  # the fraction converges fast on this side; the other one is its mirror image
        return front * _beta_fraction(a, b, x) / a
    return 1 - front * _beta_fraction(b, a, 1 - x) / b


def _beta_fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of I_x(a, b), by Lentz's method."""
    c, d = 1.0, 1 / _not_zero(1 - (a + b) * x / (a + 1))
    result = d
    for m in range(1, 1000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / _not_zero(1 + term * d)
            c = _not_zero(1 + term / c)
            result *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return result


def _not_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
