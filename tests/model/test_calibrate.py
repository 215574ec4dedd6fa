"""The fitted calibration: known distortions taken out, following days, few positives, order, negative sampling."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Exported
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from model.artifact.calibration import Calibration, CalibrationError, logits, sigmoid
from model.artifact.engine import Engine
from model.calibrate import (
    LEAST_POSITIVES,
    MOST_BINS,
    fit_calibration,
    load_calibration,
    sampling_calibration,
    undo_negative_sampling,
)
from model.export import export_run
from model.metrics import auc, calibration_figures, normalised_entropy, predicted_observed

TASK = ("ctr",)
Distortion = Callable[[np.ndarray], np.ndarray]
BASE = -2.5  # mean of the true logits

DISTORTIONS: dict[str, Distortion] = {
    "none": lambda z: z,
    "base rate": lambda z: z + 0.7,
    "overconfident": lambda z: 1.6 * z + 1,
    "timid": lambda z: 0.6 * z - 0.4,
    "saturated": lambda z: BASE + 2 * np.tanh((z - BASE) / 1.5),
    "bent": lambda z: np.where(z > BASE + 0.8, BASE + 0.8 + 0.3 * (z - BASE - 0.8), z) + 0.3,
}


def day(distort: Distortion, samples: int, seed: int, drift: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores [N, 1] of a model that distorts, labels [N, 1], true probabilities [N]; drift of the mean logit."""
    rng = np.random.default_rng(seed)
    z = BASE + drift + 1.2 * rng.standard_normal(samples)
    labels = (rng.random(samples) < sigmoid(z)).astype(np.int8)
    return sigmoid(distort(z)).astype(np.float32)[:, None], labels[:, None], sigmoid(z)


@pytest.mark.parametrize("name", DISTORTIONS)
def test_a_known_distortion_is_taken_out_of_the_following_day(name: str) -> None:
    """The following day has other candidates (their mean logit is 0.2 higher) and about 5,000 positives."""
    scores, labels, _ = day(DISTORTIONS[name], 100_000, seed=1)
    calibration = fit_calibration(TASK, scores, labels)
    after, truth, true_p = day(DISTORTIONS[name], 40_000, seed=2, drift=0.2)
    calibrated = calibration.apply(after)[:, 0]
    ratio = predicted_observed(calibrated, truth[:, 0])
    assert ratio is not None
    assert 0.95 < ratio < 1.05
    reached, best = normalised_entropy(calibrated, truth[:, 0]), normalised_entropy(true_p, truth[:, 0])
    assert reached is not None
    assert best is not None
    assert reached < best + 0.002
    inside = (true_p > 0.02) & (true_p < 0.5)
    assert np.abs(logits(calibrated[inside]) - logits(true_p[inside])).mean() < 0.1


def test_bends_are_where_the_data_show_them() -> None:
    """Knots off the best line through them, in logits: chance bends a straight distortion by next to nothing."""

    def off_line(name: str) -> float:
        x, y = map(logits, fit_calibration(TASK, *day(DISTORTIONS[name], 60_000, seed=3)[:2]).curves["ctr"])
        return float(np.abs(y - np.polyval(np.polyfit(x, y, 1), x)).max())

    assert off_line("timid") < 0.05
    assert off_line("overconfident") < 0.05
    assert off_line("bent") > 0.3


@pytest.mark.parametrize("name", ["saturated", "overconfident"])
def test_predicted_is_observed_on_the_day_of_the_fit(name: str) -> None:
    scores, labels, _ = day(DISTORTIONS[name], 60_000, seed=4)
    ratio = predicted_observed(fit_calibration(TASK, scores, labels).apply(scores)[:, 0], labels[:, 0])
    assert ratio == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", DISTORTIONS)
def test_auc_is_unchanged_over_a_million_scores(name: str) -> None:
    calibration = fit_calibration(TASK, *day(DISTORTIONS[name], 60_000, seed=5)[:2])
    rng = np.random.default_rng(6)
    scores = np.concatenate([rng.random(500_000, np.float32), sigmoid(rng.normal(-6, 2, 500_000)).astype(np.float32)])
    labels = (rng.random(len(scores)) < scores).astype(np.int8)
    before, after = auc(scores, labels), auc(calibration.apply(scores[:, None])[:, 0], labels)
    assert before is not None
    assert after is not None
    assert abs(before - after) <= 1e-6


def test_tiny_probabilities_stay_distinct() -> None:
    calibration = fit_calibration(TASK, *day(DISTORTIONS["bent"], 60_000, seed=7)[:2])
    scores = np.geomspace(1e-7, 1e-5, 10_000, dtype=np.float32)
    assert len(np.unique(calibration.apply(scores[:, None]))) == len(np.unique(scores)) == 10_000


@st.composite
def days(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Scores and labels of any kind: ties, 0 and 1, few positives, labels against the scores."""
    size = draw(st.integers(1, 60))
    repeats = draw(st.sampled_from([1, 40]))
    scores = draw(hnp.arrays(np.float32, (size, 1), elements=st.floats(0, 1, width=32)))
    labels = draw(hnp.arrays(np.int8, (size, 1), elements=st.integers(-1, 1)))
    return np.repeat(scores, repeats, axis=0), np.repeat(labels, repeats, axis=0)


GRID = np.unique(np.float32(np.concatenate([[0, 1], np.geomspace(1e-30, 1, 400), 1 - np.geomspace(6e-8, 1, 400)])))


@given(sample=days())
def test_any_fit_is_a_strictly_increasing_map_of_probabilities(sample: tuple[np.ndarray, np.ndarray]) -> None:
    calibration = fit_calibration(TASK, *sample)
    for x, y in calibration.curves.values():
        assert (np.diff(x) > 0).all()
        assert (np.diff(y) > 0).all()
        assert len(x) <= MOST_BINS + 2
    out = calibration.apply(GRID[:, None])[:, 0]
    assert ((out >= 0) & (out <= 1)).all()
    assert (np.diff(out) >= 0).all()
    wide = calibration.apply(GRID[:, None].astype(np.float64))[:, 0]
    assert (np.diff(wide[(wide > 1e-200) & (wide < 0.999)]) > 0).all()  # beyond, float64 rounds neighbours together


def test_the_service_applies_what_was_fitted(tmp_path: Path) -> None:
    """The curve read back from the file equals an independent evaluation of its knots."""
    tasks = ("ctr", "ltr", "wtr")
    scores, labels, _ = day(DISTORTIONS["saturated"], 60_000, seed=8)
    calibration = fit_calibration(tasks, np.tile(scores, 3), np.column_stack([labels, labels[::-1], 0 * labels]))
    calibration.save(tmp_path / "calibration.json")
    read = load_calibration(tmp_path, tasks)
    assert read.hash == calibration.hash
    assert set(read.curves) == {"ctr", "ltr"}
    p = np.random.default_rng(9).random((200, 3), np.float32)
    out = read.apply(p)
    assert np.array_equal(out[:, 2], p[:, 2])
    knots = json.loads((tmp_path / "calibration.json").read_text())["tasks"]["ctr"]
    x, y = (np.log(v) - np.log1p(-v) for v in (np.array(knots["x"]), np.array(knots["y"])))
    slope = np.diff(y) / np.diff(x)
    z = np.log(p[:, 0].astype(np.float64) / (1 - p[:, 0].astype(np.float64)))
    left = np.clip(np.searchsorted(x, z) - 1, 0, len(slope) - 1)
    np.testing.assert_allclose(out[:, 0], 1 / (1 + np.exp(-(y[left] + slope[left] * (z - x[left])))), rtol=1e-6)


# Few positives, ties, wrong input


def labels_with(positives: int, samples: int, seed: int = 0) -> np.ndarray:
    labels = np.zeros((samples, 1), np.int8)
    labels[np.random.default_rng(seed).choice(samples, positives, replace=False)] = 1
    return labels


@pytest.mark.parametrize("positives", [0, LEAST_POSITIVES - 1])
@pytest.mark.parametrize("flip", [False, True])
def test_too_few_of_a_class_is_the_identity(positives: int, flip: bool) -> None:
    scores = np.random.default_rng(0).random((1000, 1), np.float32)
    labels = labels_with(positives, 1000)
    assert not fit_calibration(TASK, scores, 1 - labels if flip else labels).curves


def test_unknown_labels_take_no_part() -> None:
    scores, labels, _ = day(DISTORTIONS["timid"], 5_000, seed=10)
    more = np.concatenate([scores, np.full((3000, 1), 0.9, np.float32)])
    unknown = np.concatenate([labels, np.full((3000, 1), -1, np.int8)])
    assert fit_calibration(TASK, more, unknown).hash == fit_calibration(TASK, scores, labels).hash
    assert not fit_calibration(TASK, scores, np.full_like(labels, -1)).curves


@pytest.mark.parametrize("positives", [5, 20])
def test_few_positives_move_probabilities_part_of_the_way(positives: int) -> None:
    """A fifth of the predicted positives are seen: the shift lies between none and all of it."""
    scores = (
        np.full((1000, 1), positives * 5 / 1000, np.float32) * np.linspace(0.5, 1.5, 1000, dtype=np.float32)[:, None]
    )
    calibrated = fit_calibration(TASK, scores, labels_with(positives, 1000)).apply(scores)
    ratio = predicted_observed(calibrated[:, 0], labels_with(positives, 1000)[:, 0])
    assert ratio is not None
    assert 1.02 < ratio < 3


def test_few_positives_do_not_overfit() -> None:
    """Over 40 days of about 20 positives: a good model loses less than 2% of the entropy, a bad one gains."""
    after = {name: day(DISTORTIONS[name], 20_000, seed=11) for name in ("none", "overconfident")}
    change: dict[str, list[float]] = {name: [] for name in after}
    for name, (scores, truth, _) in after.items():
        before = normalised_entropy(scores[:, 0], truth[:, 0])
        assert before is not None
        for seed in range(40):
            fitted = fit_calibration(TASK, *day(DISTORTIONS[name], 170, seed=100 + seed)[:2])
            found = normalised_entropy(fitted.apply(scores)[:, 0], truth[:, 0])
            assert found is not None
            change[name].append(found - before)
    assert np.mean(change["none"]) < 0.02
    assert np.mean(change["overconfident"]) < -0.01


def test_tied_scores_get_the_base_rate() -> None:
    scores, labels = np.full((20_000, 1), 0.3, np.float32), labels_with(2_000, 20_000)
    calibration = fit_calibration(TASK, scores, labels)
    assert calibration.apply(scores[:1])[0, 0] == pytest.approx(0.1, rel=0.01)
    out = calibration.apply(np.linspace(0, 1, 101, dtype=np.float32)[:, None])[:, 0]
    assert (np.diff(out) > 0).all()


def test_scores_that_rank_the_day_backwards_still_keep_their_order() -> None:
    scores, labels, _ = day(lambda z: -z, 30_000, seed=12)
    calibration = fit_calibration(TASK, scores, labels)
    p = np.linspace(0, 1, 1001, dtype=np.float32)[:, None]
    assert (np.diff(calibration.apply(p)[:, 0]) > 0).all()
    ratio = predicted_observed(calibration.apply(scores)[:, 0], labels[:, 0])
    assert ratio == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("extreme", [0.0, 1.0])
def test_saturated_scores_are_fitted(extreme: float) -> None:
    scores = np.full((4_000, 1), extreme, np.float32)
    scores[:400] = 0.5
    labels = labels_with(1_000, 4_000)
    out = fit_calibration(TASK, scores, labels).apply(scores)
    assert np.isfinite(out).all()
    assert ((out >= 0) & (out <= 1)).all()


@pytest.mark.parametrize("score", [np.nan, np.inf, -0.1, 1.1])
def test_a_score_that_is_no_probability_is_refused(score: float) -> None:
    scores, labels, _ = day(DISTORTIONS["none"], 100, seed=13)
    scores[7] = score
    with pytest.raises(CalibrationError, match=r"calibration\.ctr: score of row 7"):
        fit_calibration(TASK, scores, labels)


def test_wrong_labels_shapes_and_rates_are_refused() -> None:
    scores, labels, _ = day(DISTORTIONS["none"], 100, seed=13)
    with pytest.raises(CalibrationError, match=r"calibration\.ctr: label of row 0 is 2"):
        fit_calibration(TASK, scores, np.full_like(labels, 2))
    with pytest.raises(CalibrationError, match=r"\[samples, 2 tasks\]"):
        fit_calibration(("ctr", "ltr"), scores, labels)
    with pytest.raises(CalibrationError, match="negative_rate"):
        fit_calibration(TASK, scores, labels, negative_rate=0.0)


# Negative sampling


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 1.0])
def test_the_curve_of_negative_sampling_is_the_classical_formula(rate: float) -> None:
    p = np.append(np.random.default_rng(14).random((500, 1)), [[1e-6]], axis=0)
    np.testing.assert_allclose(
        sampling_calibration(TASK, rate).apply(p), undo_negative_sampling(p, rate), rtol=1e-6, atol=1e-12
    )


@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_data_sampled_at_a_rate_is_corrected(rate: float) -> None:
    """A model that is exact on the sampled data predicts as many positives of all data as there are."""
    z = np.repeat(np.linspace(-5, 0, 20), 20_000)
    rng = np.random.default_rng(15)
    labels = (rng.random(len(z)) < sigmoid(z)).astype(np.int8)
    kept = (labels == 1) | (rng.random(len(z)) < rate)
    counts, positives = (np.bincount(np.arange(len(z))[kept] // 20_000, w) for w in (None, labels[kept]))
    trained = (positives / counts)[np.arange(len(z)) // 20_000].astype(np.float32)[:, None]
    raw = predicted_observed(trained[:, 0], labels)
    assert raw is not None
    assert raw > 1.5
    for corrected in (sampling_calibration(TASK, rate).apply(trained), undo_negative_sampling(trained, rate)):
        assert predicted_observed(corrected[:, 0], labels) == pytest.approx(1, abs=0.02)


def test_the_fit_goes_on_from_the_sampling_correction() -> None:
    """With positives: the fit agrees with one on corrected scores.  Without: the correction alone."""
    scores, labels, _ = day(DISTORTIONS["overconfident"], 20_000, seed=16)
    few = np.zeros_like(labels)
    fitted = fit_calibration(("ctr", "ltr"), np.tile(scores, 2), np.hstack([labels, few]), negative_rate=0.1)
    corrected = sampling_calibration(TASK, 0.1).apply(scores.astype(np.float64))
    p = np.random.default_rng(17).random((100, 1))
    expected = fit_calibration(TASK, corrected, labels).apply(undo_negative_sampling(p, 0.1))
    out = fitted.apply(np.tile(p, 2))
    np.testing.assert_allclose(out[:, :1], expected, rtol=1e-6)
    np.testing.assert_allclose(out[:, 1:], undo_negative_sampling(p, 0.1), rtol=1e-6)


# Of a run


def test_a_run_without_calibration_has_the_identity(tmp_path: Path) -> None:
    assert load_calibration(tmp_path, TASK).hash == Calibration(TASK, {}).hash


def test_export_takes_the_calibration_of_the_run(export_of: Callable[[str], Exported], tmp_path: Path) -> None:
    plain, run = export_of("arch=ple"), tmp_path / "run"
    run.mkdir()
    replace(plain.run, settings={"arch": "ple"}).save(run)
    torch.save(plain.model.state_dict(), run / "model.pt")
    calibration = sampling_calibration(plain.run.view.tasks, 0.5)
    calibration.save(run / "calibration.json")
    engine = Engine(export_run(run, tmp_path / "artifact"))
    assert engine.calibration.hash == calibration.hash != plain.engine.calibration.hash
    (run / "calibration.json").write_text('{"tasks": {"ctr": {"x": [0.2, 0.1], "y": [0.1, 0.2]}}}')
    with pytest.raises(CalibrationError, match=r"calibration\.ctr\.x"):
        export_run(run, tmp_path / "artifact")


def test_figures_before_and_after() -> None:
    scores, labels, _ = day(DISTORTIONS["base rate"], 40_000, seed=18)
    calibrated = fit_calibration(TASK, scores, labels).apply(scores)
    before, after = (
        {k: v or 0 for k, v in calibration_figures(p[:, 0], labels[:, 0]).items()} for p in (scores, calibrated)
    )
    assert after["ne"] < before["ne"]
    assert after["ece"] < 0.01 < before["ece"]
    assert before["predicted_observed"] > 1.5
    assert after["predicted_observed"] == pytest.approx(1, abs=1e-3)
