"""What the report computes with the models, against computations that share no code with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MakeModel
from small_study import study_of

from feature_store.schema import DOMAINS, MISSING, Domain
from model.attention import attend, split_heads
from model.datasets.prepared import Events, Prepared
from model.datasets.samples import gather
from model.embedding import masked_mean
from model.evaluate import predict, tensors
from model.farm import Ranker
from model.metrics import auc
from model.report import alignment, calibration_curves, degraded, frequency_case, fusing, training_curves
from model.report.degraded import STALE, WHOLE, changes, frozen, predict_changed
from model.report.frequency_case import choose, gates
from model.report.fusing import cross_weights
from model.report.stale import NAMES
from model.report.subject import Subject, histories


@pytest.fixture(scope="module")
def subject(prepared: Prepared, workshop: Path) -> Subject:
    return Subject.open(study_of(prepared, workshop), prepared.path)


@pytest.fixture(scope="module")
def farm(subject: Subject) -> Ranker:
    model = subject.model("farm")
    assert model is not None
    return model


@pytest.fixture(scope="module")
def rows(subject: Subject) -> np.ndarray:
    return subject.user_rows()[:40]


def test_users_are_asked_about_at_their_last_request(subject: Subject, prepared: Prepared) -> None:
    rows = subject.user_rows()
    users, times = prepared.samples["user_row"], prepared.samples["request_time"]
    assert len(np.unique(users[rows])) == len(rows) == len(np.unique(users[prepared.rows("test")]))
    for row in rows[:10]:
        mine = prepared.rows("test")[users[prepared.rows("test")] == users[row]]
        assert times[row] == times[mine].max()


# Gates (Table 3)


@torch.inference_mode()
def test_gates_are_those_of_equation_10(farm: Ranker, prepared: Prepared, rows: np.ndarray) -> None:
    found = gates(farm, gather(prepared, rows))
    assert farm.farm is not None
    for user, row in enumerate(rows[:8]):
        h = histories(farm, gather(prepared, rows[user : user + 1]))
        for i, (module, x, valid) in enumerate(
            ((farm.farm.video_frequency, h.video, h.video_valid), (farm.farm.live_frequency, h.live, h.live_valid))
        ):
            if not valid.any():
                assert np.isnan(found[user, 2 * i : 2 * i + 2]).all(), row
                continue
            assert module is not None
            mean = masked_mean(x, valid)
            expected = [torch.sigmoid(gate.mlp(mean)).item() for gate in (module.low_gate, module.high_gate)]
            assert found[user, 2 * i : 2 * i + 2] == pytest.approx(expected, abs=1e-6)


def test_the_base_has_no_gates(subject: Subject, prepared: Prepared, rows: np.ndarray) -> None:
    model = subject.model("ple")
    assert model is not None
    assert np.isnan(gates(model, gather(prepared, rows))).all()


def test_quantiles_of_gates_are_over_the_users_of_a_group(subject: Subject, farm: Ranker, prepared: Prepared) -> None:
    measured = frequency_case.measure(subject)["gates"]
    users = subject.user_rows()
    beta = gates(farm, gather(prepared, users))[:, 1]
    group = prepared.users["activity_group"][prepared.samples["user_row"][users]]
    for name, mask in (("all", group >= 0), ("mid", group == 1)):
        kept = beta[mask & np.isfinite(beta)]
        assert measured[name]["beta"]["users"] == len(kept)
        assert measured[name]["beta"]["quantiles"][2] == pytest.approx(np.median(kept), abs=1e-5)


def test_the_case_is_a_low_active_user_s_rare_positive(subject: Subject, farm: Ranker, prepared: Prepared) -> None:
    row = choose(subject)
    assert row is not None
    assert row in prepared.rows("test")
    assert prepared.users["activity_group"][prepared.samples["user_row"][row]] == 0
    assert prepared.samples["labels"][row, 3:].max() == 1
    case = frequency_case.measure(subject)["case"]
    ours = predict(farm, prepared, np.array([row]))[0]
    assert case["variants"]["farm"]["tasks"]["ltr"]["probability"] == pytest.approx(ours[3])
    assert list(case["variants"]) == ["farm"]  # no_frequency is not in this study
    bits = sum(1 << prepared.schema.behaviours.index(act) for act in ("like", "comment", "gift"))
    for domain in DOMAINS:
        end, start = (
            prepared.samples[f"{domain}_end"][row],
            prepared.events[domain].offsets[prepared.samples["user_row"][row]],
        )
        acts = [int(b) & bits for b in prepared.events[domain].columns["behaviours"][max(start, end - 50) : end]]
        assert case["history"][domain] == {"events": len(acts), "rare_acts": sum(a > 0 for a in acts)}


# Preferences (Figure 3)


@torch.inference_mode()
def test_cosines_are_of_the_user_and_of_another(subject: Subject, farm: Ranker, prepared: Prepared) -> None:
    found = alignment.cosines(subject, farm)
    assert found is not None
    _, preferences = farm.user_state(**tensors(gather(prepared, subject.user_rows())))
    assert preferences is not None
    kept = preferences.takes_part.numpy()
    video, live = (h.numpy().astype(float)[kept] for h in (preferences.video, preferences.live))
    every = (live @ video.T) / np.outer(np.linalg.norm(live, axis=1), np.linalg.norm(video, axis=1))
    same, other = found
    assert same == pytest.approx(np.diag(every), abs=1e-5)
    off = np.where(np.eye(len(every), dtype=bool), np.inf, every)
    assert (np.abs(off - other[:, None]).min(axis=1) < 1e-5).all()


def test_figure_3_of_both_variants(subject: Subject) -> None:
    figures = alignment.measure(subject)
    assert {kind: of["variant"] for kind, of in figures["variants"].items()} == {
        "with": "farm",
        "without": "align_weight=0",
    }
    assert figures["missing"] is None
    gaps = {kind: of["gap"] for kind, of in figures["variants"].items()}
    assert figures["gap_with_minus_without"] == pytest.approx(gaps["with"] - gaps["without"])
    assert len(figures["variants"]["with"]["gaps"]) == 2
    for of in figures["variants"].values():
        assert sum(of["same"]) == pytest.approx(1)
        assert sum(of["other"]) == pytest.approx(1)


def test_a_model_without_equation_13_has_no_cosine(subject: Subject) -> None:
    model = subject.model("ple")
    assert model is not None
    assert alignment.cosines(subject, model) is None


# Cross-attention (Figure 4)


@pytest.mark.parametrize("sink", [False, True])
@torch.inference_mode()
def test_cross_weights_are_those_of_equation_16(
    make_model: MakeModel, prepared: Prepared, rows: np.ndarray, sink: bool
) -> None:
    farm, batch = make_model(seed=3, view=prepared.view, sink=sink), gather(prepared, rows)  # heads that differ
    weights = cross_weights(farm, batch)
    h = histories(farm, batch)
    both = h.live_valid.numpy() & h.video_valid.any(1).numpy()[:, None]
    if sink:  # which has the rest
        assert (weights.sum(-1) < 1).all()
    else:
        assert weights.sum(-1) == pytest.approx(both.astype(float), abs=1e-5)
    assert (weights[~np.broadcast_to(h.video_valid.numpy()[:, None], weights.shape)] == 0).all()
    assert farm.farm is not None
    assert farm.farm.fuse is not None
    assert farm.farm.self_attentions is not None
    v_hat, l_hat = farm.farm.self_attentions(h.video, h.live, h.video_valid, h.live_valid)
    cross = farm.farm.fuse.cross
    keys, _, valid = cross.keys_values(v_hat, h.video_valid)
    heads, slots = cross.heads, weights.shape[-1] + sink
    one_hot = torch.eye(slots, dtype=torch.float64).expand(
        len(batch.user_rows), heads, slots, slots
    )  # the values tell the weights
    mixed = attend(split_heads(cross.query(l_hat), heads), keys, one_hot, valid)
    expected = mixed.unflatten(-1, (heads, slots)).mean(-2).numpy()[..., : weights.shape[-1]]
    assert weights[both] == pytest.approx(expected[both], abs=1e-12)
    assert weights[both].std() > 1e-3


def test_pairs_of_one_tag_by_hand() -> None:
    live, video = np.array([[1, 2], [3, MISSING]]), np.array([[1, 1, 2], [MISSING, 3, 4]])
    weights = np.arange(12, dtype=float).reshape(2, 2, 3)
    means = fusing._pair_means(fusing._pair_sums(weights, live, video, np.array([3, 2])))
    same, other = [0.0, 1.0, 5.0, 7.0], [2.0, 3.0, 4.0, 8.0]
    assert means["same_tag"]["pairs"] == means["other"]["pairs"] == 4
    assert means["same_tag"]["weight"] == np.mean(same)
    assert means["other"]["weight"] == np.mean(other)
    assert means["same_tag"]["times_uniform"] == (3 * 6 + 2 * 7) / 4


def test_the_heat_map_is_of_one_user_s_events(subject: Subject, prepared: Prepared) -> None:
    user = fusing.measure(subject)["user"]
    weights, same = np.array(user["weights"]), np.array(user["same_tag"])
    batch = gather(prepared, np.array([user["row"]]))
    assert weights.shape == same.shape == (batch.users.live_length[0], batch.users.video_length[0])
    assert ((weights.sum(1) > 0) & (weights.sum(1) <= 1 + 1e-3)).all()  # the sink has the rest
    live, video = ([label.split(" / ")[0] for label in user[domain]] for domain in ("live", "video"))
    assert (same == (np.array(live)[:, None] == np.array(video))).all()
    tags = prepared.events["live"].columns["tag"]
    end = prepared.samples["live_end"][user["row"]]
    assert sorted(live) == sorted(f"tag {tag}" for tag in tags[end - len(live) : end])


# Degraded answers


def emptied(data: Prepared, *domains: Domain) -> Prepared:
    """The data, every sample's history in `domains` ending where it begins."""
    samples = dict(data.samples)
    for domain in domains:
        samples[f"{domain}_end"] = data.events[domain].offsets[samples["user_row"]]
    return replace(data, samples=samples)


def test_an_answer_without_history_is_that_of_data_without_events(farm: Ranker, prepared: Prepared) -> None:
    rows = prepared.rows("test")[:100]
    named = changes(prepared.view)
    without: dict[str, tuple[Domain, ...]] = {
        "no history": DOMAINS,
        "no video history": ("video",),
        "no live history": ("live",),
    }
    for name, domains in without.items():
        found = predict_changed(farm, prepared, rows, named[name])
        assert found == pytest.approx(predict(farm, emptied(prepared, *domains), rows), abs=1e-6)
        assert np.abs(found - predict(farm, prepared, rows)).max() > 1e-4
    assert predict_changed(farm, prepared, rows, named[WHOLE]) == pytest.approx(predict(farm, prepared, rows), abs=1e-6)


def test_what_is_unknown_of_author_and_user_is_missing(prepared: Prepared) -> None:
    view, batch = prepared.view, gather(prepared, prepared.rows("test")[:50])
    changed = changes(view)["unknown user and author"](batch)
    for index, column in enumerate(view.columns("candidate")):
        kept = column in ("author_id", "live_id")
        assert (changed.candidates[:, index] == (batch.candidates[:, index] if kept else MISSING)).all()
    columns = (*view.columns("user"), *view.columns("context"))
    for index, column in enumerate(columns):
        kept = column in ("user_id", "page")
        assert (changed.users.user[:, index] == (batch.users.user[:, index] if kept else MISSING)).all()
    assert not changed.users.video_length.any()
    assert not changed.users.live_length.any()
    assert batch.users.video_length.any()  # the batch itself is not changed


def test_stale_histories_end_at_the_first_test_request(prepared: Prepared) -> None:
    rows = prepared.rows("test")
    stale, first = frozen(prepared), prepared.samples["request_time"][rows].min()
    for domain in DOMAINS:
        events: Events = prepared.events[domain]
        for row in rows[::50]:
            user = prepared.samples["user_row"][row]
            known = events.known_at()[events.offsets[user] : events.offsets[user + 1]] <= first
            assert stale.samples[f"{domain}_end"][row] == events.offsets[user] + known.sum()
        before = prepared.rows("train")
        assert (stale.samples[f"{domain}_end"][before] == prepared.samples[f"{domain}_end"][before]).all()


def test_degraded_aucs_are_over_the_test_samples(subject: Subject, farm: Ranker, prepared: Prepared) -> None:
    found = degraded.measure(subject)
    labels = prepared.samples["labels"][prepared.rows("test"), 0]
    assert list(found["variants"]["farm"]) == [*changes(prepared.view), STALE, *NAMES]
    whole = np.load(subject.run_folder("farm", "0") / "test.npy")
    assert found["variants"]["farm"][WHOLE]["ctr"]["auc"] == pytest.approx(auc(whole[:, 0], labels), abs=1e-4)
    empty = predict(farm, emptied(prepared, *DOMAINS), prepared.rows("test"))
    assert found["variants"]["farm"]["no history"]["ctr"]["auc"] == pytest.approx(auc(empty[:, 0], labels), abs=1e-4)


# Calibration, training


def test_calibration_before_and_after(subject: Subject, prepared: Prepared) -> None:
    figures = calibration_curves.measure(subject)["variants"]["farm"]
    scores, labels = (
        np.load(subject.run_folder("farm", "0") / "test.npy"),
        prepared.samples["labels"][prepared.rows("test")],
    )
    calibration = subject.calibration("farm")
    assert calibration is not None
    for when, values in (("before", scores), ("after", calibration.apply(scores))):
        ratio = values[:, 0].astype(float).sum() / (labels[:, 0] == 1).sum()
        assert figures[when]["ctr"]["predicted_observed"] == pytest.approx(ratio)
        assert np.mean(figures[when]["ctr"]["curve"]["predicted"]) == pytest.approx(values[:, 0].mean(), rel=0.02)


def test_training_curves_are_the_runs_own(subject: Subject) -> None:
    curves = training_curves.measure(subject)["variants"]
    assert list(curves) == ["ple", "farm", "align_weight=0"]
    for seed in ("0", "1"):
        run = subject.run("farm", seed)
        assert curves["farm"][seed]["loss"] == [epoch["loss"] for epoch in run.epochs]
        assert curves["farm"][seed]["auc"] == [epoch["valid"]["ctr"]["auc"] for epoch in run.epochs]
