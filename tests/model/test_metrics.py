"""AUC, UAUC and GAUC (Eq. 19) against brute force over all pairs; calibration against sums by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from model.metrics import (
    MEASURABLE_POSITIVES,
    auc,
    calibration_figures,
    group_aucs,
    normalised_entropy,
    predicted_observed,
    reliability,
    task_metrics,
)

SAMPLES = st.lists(
    st.tuples(st.integers(-2, 3), st.integers(0, 2), st.integers(0, 4), st.integers(0, 1)), min_size=0, max_size=40
)  # user, page, score (few values: many ties), label


def columns(samples: list[tuple[int, int, int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    users, pages, scores, labels = np.array(samples, np.int64).reshape(-1, 4).T
    return users, pages, (scores / 4).astype(np.float32), labels.astype(np.int8)


@given(samples=SAMPLES)
def test_eq_19_agrees_with_brute_force(samples: list[tuple[int, int, int, int]]) -> None:
    users, pages, scores, labels = columns(samples)
    found = task_metrics(scores, labels, users, pages)
    uauc, gauc = reference.uauc_gauc(users.tolist(), scores, labels)
    _, gauc_page = reference.uauc_gauc(list(zip(users.tolist(), pages.tolist(), strict=True)), scores, labels)
    expected = (reference.auc(scores.tolist(), labels.tolist()), uauc, gauc, gauc_page)
    for got, want in zip((found.auc, found.uauc, found.gauc, found.gauc_page), expected, strict=True):
        assert got is None if want is None else got == pytest.approx(want, abs=1e-12)
    assert (found.positives, found.samples) == (labels.sum(), len(samples))


def test_known_figures() -> None:
    assert auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1])) == 0.75
    assert auc(np.array([0.5, 0.5, 0.5]), np.array([0, 1, 1])) == 0.5
    assert auc(np.array([0.0, 1.0]), np.array([1, 0])) == 0.0


@pytest.mark.parametrize("labels", [[], [0, 0, 0], [1, 1, 1]])
def test_undefined_figures_are_none(labels: list[int]) -> None:
    empty = np.zeros(len(labels), np.int64)
    found = task_metrics(np.arange(len(labels)) / 3, np.array(labels, np.int8), empty, empty)
    assert (found.auc, found.uauc, found.gauc, found.gauc_page) == (None, None, None, None)
    assert (found.users, found.positives, found.samples) == (0, sum(labels), len(labels))
    assert not found.measurable


def test_users_of_one_class_are_skipped_and_weights_are_of_the_kept() -> None:
    users = np.array([7, 7, 9, 9, 9, 9, 11, 11, 11])
    scores = np.array([0.9, 0.1, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    labels = np.array([1, 0, 1, 0, 0, 0, 1, 1, 1])  # AUC 1, AUC 0, one class
    found = task_metrics(scores, labels, users, np.zeros(9, np.int64))
    assert found.users == 2
    assert found.uauc == 0.5
    assert found.gauc == pytest.approx((2 * 1 + 4 * 0) / 6)  # the literal "all sample" would divide by 9
    kept = group_aucs(users, scores, labels)
    assert kept.groups.tolist() == [7, 9]
    assert kept.samples.tolist() == [2, 4]


def test_pages_split_users() -> None:
    users, pages = np.zeros(4, np.int64), np.array([1, 1, 2, 2])
    scores, labels = np.array([0.2, 0.1, 0.9, 0.8]), np.array([1, 0, 1, 0])
    found = task_metrics(scores, labels, users, pages)
    assert found.gauc == 0.75
    assert found.gauc_page == 1.0


def test_random_scores_give_one_half() -> None:
    rng = np.random.default_rng(0)
    users = rng.integers(0, 2_000, 60_000) * rng.integers(0, 2, 60_000)  # one user has half of all
    labels = (rng.random(60_000) < 0.05).astype(np.int8)
    found = task_metrics(rng.random(60_000), labels, users, rng.integers(0, 3, 60_000))
    for figure in (found.auc, found.uauc, found.gauc, found.gauc_page):
        assert figure == pytest.approx(0.5, abs=0.02)


def test_order_of_samples_and_scale_of_scores_do_not_matter() -> None:
    rng = np.random.default_rng(1)
    users, labels, scores = rng.integers(0, 50, 2000), rng.integers(0, 2, 2000), rng.integers(0, 9, 2000) / 8
    order = rng.permutation(2000)
    pages = np.zeros(2000, np.int64)
    found = task_metrics(scores, labels, users, pages)
    again = task_metrics(np.exp(scores[order]) * 5, labels[order], users[order], pages)
    for name in ("auc", "uauc", "gauc", "gauc_page"):
        assert getattr(found, name) == pytest.approx(getattr(again, name), abs=1e-12)


@pytest.mark.parametrize(
    ("positives", "negatives", "measurable"),
    [(50, 1000, True), (49, 1000, False), (1000, 50, True), (1000, 49, False), (0, 0, False)],
)
def test_measurable_needs_positives_and_negatives(positives: int, negatives: int, measurable: bool) -> None:
    assert MEASURABLE_POSITIVES == 50
    labels = np.repeat([1, 0], [positives, negatives])
    same = np.zeros(len(labels), np.int64)
    assert task_metrics(np.arange(len(labels)) / 7.0, labels, same, same).measurable == measurable


# Calibration


@given(samples=SAMPLES)
def test_calibration_agrees_with_sums_by_hand(samples: list[tuple[int, int, int, int]]) -> None:
    users, pages, scores, labels = columns(samples)
    found = task_metrics(scores, labels, users, pages)
    pairs = [(min(max(float(s), 1e-12), 1 - 1e-12), y) for s, y in zip(scores, labels.tolist(), strict=True)]
    positives = sum(y for _, y in pairs)
    if positives == 0:
        assert found.predicted_observed is None
    else:
        assert found.predicted_observed == pytest.approx(sum(float(s) for s in scores) / positives)
    if positives in (0, len(pairs)):
        assert found.ne is None
        return
    rate = positives / len(pairs)
    loss = -sum(math.log2(p) if y else math.log2(1 - p) for p, y in pairs)
    base = -positives * math.log2(rate) - (len(pairs) - positives) * math.log2(1 - rate)  # TorchRec's form, in bits
    assert found.ne == pytest.approx(loss / base)


def test_known_calibration_figures() -> None:
    labels = np.array([0, 0, 0, 1], np.int8)
    assert predicted_observed(np.full(4, 0.5, np.float32), labels) == 2.0
    assert normalised_entropy(np.full(4, 0.25, np.float32), labels) == pytest.approx(1.0)
    assert normalised_entropy(np.array([0.0, 0.0, 0.0, 1.0]), labels) == pytest.approx(0.0, abs=1e-10)


def test_reliability_has_bins_of_equal_counts_and_leaves_out_unknown_labels() -> None:
    scores = np.array([0.6, 0.1, 0.2, 0.5, 0.9, 0.3, 0.99], np.float32)
    labels = np.array([1, 0, 1, 0, 1, 0, -1], np.int8)
    found = reliability(scores, labels, bins=3)
    np.testing.assert_allclose(found.predicted, [0.15, 0.4, 0.75], rtol=1e-6)
    np.testing.assert_allclose(found.observed, [0.5, 0.0, 1.0])
    assert found.samples.tolist() == [2, 2, 2]
    assert found.error() == pytest.approx((0.35 + 0.4 + 0.25) / 3)
    figures = calibration_figures(scores, labels)
    assert (figures["positives"], figures["samples"]) == (3, 6)
    assert figures["predicted_observed"] == pytest.approx(2.6 / 3)


def test_tied_scores_share_a_bin() -> None:
    found = reliability(np.array([0.5, 0.5, 0.5, 0.5, 0.7, 0.8]), np.array([1, 0, 0, 0, 1, 1], np.int8), bins=3)
    assert found.samples.tolist() == [4, 2]
    np.testing.assert_allclose(found.observed, [0.25, 1.0])


def test_figures_of_nothing_are_none() -> None:
    figures = calibration_figures(np.array([0.5, 0.5]), np.array([-1, -1], np.int8))
    assert figures == {"predicted_observed": None, "ne": None, "ece": None, "positives": 0, "samples": 0}
