"""Every equation of the paper, 1 to 18, against the float64 NumPy reference.  Eq. 19 is in test_metrics.py.

Users differ in their history lengths: none, one event, full, in either domain.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import reference
import torch
from conftest import MakeModel
from reference import Reference, under, weights_of

from feature_store.matrices import UserInputs
from feature_store.view import ModelView
from model.align import align_loss
from model.datasets.samples import Batch
from model.embedding import quantise
from model.farm import Histories, Ranker
from model.frequency import fourier_basis
from model.golden import random_candidates, random_users
from model.train import total_loss, xtr_loss

LENGTHS = [(0, 0), (1, 0), (0, 1), (1, 1), (7, 3), (50, 12), (49, 50), (50, 50)]
TOLERANCE = 1e-10  # the issue asks for 1e-6; float64 gives more


def users_of(view: ModelView, seed: int = 0) -> UserInputs:
    return random_users(view, LENGTHS, seed)


def tensors(users: UserInputs) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(values) for name, values in users.feeds().items()}


def histories_of(model: Ranker, users: UserInputs) -> Histories:
    t = tensors(users)
    return model.inputs.histories(t["video"], t["video_length"], t["live"], t["live_length"], t["now"])


def reference_of(model: Ranker) -> Reference:
    return Reference(weights_of(model), model.config, model.view)


def assert_events_close(padded: torch.Tensor, expected: list[np.ndarray]) -> None:
    """padded [U, L, D] against each user's events [n, D]; pads are zero."""
    for u, events in enumerate(expected):
        np.testing.assert_allclose(padded[u, : len(events)].detach().numpy(), events, atol=TOLERANCE)
        assert (padded[u, len(events) :] == 0).all()


# Frequencies


@pytest.mark.parametrize("n", [1, 5, 9, 49])
def test_eq_1_dft_matrix_is_unitary_and_the_basis_spans_it(n: int) -> None:
    f = reference.dft(n)
    np.testing.assert_allclose(f @ f.conj().T, np.eye(n), atol=1e-12)
    x = np.random.default_rng(n).normal(size=(n, 3))
    np.testing.assert_allclose(f @ x, np.fft.fft(x, axis=0, norm="ortho"), atol=1e-12)
    B = fourier_basis(n, n).numpy()  # all frequencies of an odd length: a real basis of the same space
    np.testing.assert_allclose(np.linalg.norm(B.T @ x), np.linalg.norm(f @ x), atol=1e-12)


def test_eq_2_each_column_of_the_basis_is_one_frequency() -> None:
    B = fourier_basis(50, 9).numpy()
    power = np.abs(reference.dft(50) @ B) ** 2  # [frequency, column]
    for column in range(9):
        m = (column + 1) // 2
        assert power[sorted({m, (50 - m) % 50}), column].sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("n", [1, 3, 25, 49])
def test_eq_3_inverse_dft_gives_the_signal_back(n: int) -> None:
    x = np.random.default_rng(n).normal(size=(n, 3))
    f = reference.dft(n)
    np.testing.assert_allclose((f.conj().T @ (f @ x)).real, x, atol=1e-12)
    B = fourier_basis(n, n).numpy()
    np.testing.assert_allclose(B @ (B.T @ x), x, atol=1e-12)


@pytest.mark.parametrize("spectrum", ["proportional", "count", "padded"])
def test_eq_4_low_frequencies_and_eq_5_high_frequencies(make_model: MakeModel, spectrum: str) -> None:
    model = make_model(spectrum=spectrum)
    h = histories_of(model, users_of(model.view))
    assert model.farm is not None
    module = model.farm.video_frequency
    assert module is not None
    low = module.low_pass(h.video, h.video_valid.sum(1)).detach().numpy()
    for u, (n, _) in enumerate(LENGTHS):
        x = h.video[u, : 50 if spectrum == "padded" and n else n].detach().numpy()
        c = reference.cutoff_of(n, 50, 5) if spectrum == "proportional" and n else 5
        if n:
            np.testing.assert_allclose(low[u, : len(x)], reference.low(x, c), atol=TOLERANCE)
            np.testing.assert_allclose(x - low[u, : len(x)], reference.high(x, c), atol=TOLERANCE)


# The whole model and its losses


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"arch": "ple"},
        {"video_frequency": False},
        {"live_frequency": False},
        {"align": False},
        {"fuse": False},
        {"sink": False},
        {"residual": False},
        {"align": False, "fuse": False, "video_frequency": False, "live_frequency": False},
        {"spectrum": "padded", "cutoff": 3, "heads": 4, "head_width": 8, "levels": 3, "task_experts": 2},
        {"spectrum": "count", "levels": 1, "shared_experts": 1, "heads": 1},
        {"arch": "shared_bottom"},
        {"arch": "mmoe"},
        {"multitask": "cgc"},
        {"multitask": "adatt", "task_experts": 2},
    ],
    ids=lambda s: ",".join(f"{k}={v}" for k, v in s.items()) or "farm",
)
def test_eq_6_probabilities_of_the_whole_model(make_model: MakeModel, settings: dict) -> None:
    model = make_model(seed=3, **settings)
    users = users_of(model.view, seed=1)
    candidates = random_candidates(model.view, (len(LENGTHS), 3), seed=2)
    with torch.inference_mode():
        state, _ = model.user_state(**tensors(users))
        logits = model.candidate_logits(state, torch.from_numpy(candidates), torch.arange(len(LENGTHS)))
    oracle = reference_of(model)
    expected = np.array([oracle.logits(users, u, candidates[u]) for u in range(len(LENGTHS))])
    np.testing.assert_allclose(logits.numpy(), expected, atol=1e-9)
    np.testing.assert_allclose(torch.sigmoid(logits).numpy(), reference.sigmoid(expected), atol=1e-10)
    assert expected.std() > 0.05  # the comparison is of something


def batch_of(view: ModelView, seed: int = 0) -> Batch:
    """A batch of every kind of history; two rows of one user; some labels not known, one task never."""
    rng = np.random.default_rng(seed)
    size, tasks = len(LENGTHS), len(view.tasks)
    known = rng.random((size, tasks)) < 0.7
    known[:, -1] = False
    labels = (rng.integers(0, 2, (size, tasks)) * known).astype(np.float32)
    user_rows = np.arange(size)
    user_rows[-1] = user_rows[-2]
    candidates = random_candidates(view, (size, 1), seed)[:, 0]
    return Batch(users_of(view, seed), np.arange(size), candidates, labels, known, user_rows)


def expected_xtr_loss(model: Ranker, batch: Batch) -> float:
    oracle = reference_of(model)
    rows = range(len(batch.labels))
    logits = np.array([oracle.logits(batch.users, u, batch.candidates[u : u + 1])[0] for u in rows])
    return reference.xtr_loss(logits, batch.labels, batch.known)


def expected_align_loss(model: Ranker, batch: Batch) -> float:
    oracle, config = reference_of(model), model.config
    pairs = [oracle.preferences(oracle.user_side(batch.users, u)) for u in range(len(batch.labels))]
    video, live = (np.array(side) for side in zip(*pairs, strict=True))
    both = (batch.users.video_length > 0) & (batch.users.live_length > 0)
    return reference.align_loss(
        live, video, batch.user_rows, both, tau=config.temperature, normalise=config.align_normalise
    )


def test_eq_7_negative_log_likelihood_over_known_labels(make_model: MakeModel) -> None:
    model = make_model(align=False)
    batch = batch_of(model.view)
    assert total_loss(model, batch).item() == pytest.approx(expected_xtr_loss(model, batch), rel=1e-6)


def test_eq_7_labels_that_are_not_known_do_not_count() -> None:
    logits = torch.randn(6, 3, requires_grad=True)
    labels, known = torch.randint(0, 2, (6, 3)).float(), torch.tensor([[True, False, True]] * 3 + [[True] * 3] * 3)
    known[:, 2] = False
    flipped = torch.where(known, labels, 1 - labels)
    assert xtr_loss(logits, labels, known).item() == xtr_loss(logits, flipped, known).item()
    xtr_loss(logits, labels, known).backward()
    assert logits.grad is not None
    assert ((logits.grad != 0) == known).all()
    nothing = torch.zeros_like(known)
    assert xtr_loss(logits, labels, nothing).item() == 0


def test_eq_7_stays_finite_at_extreme_logits() -> None:
    logits = torch.tensor([[1e4, -1e4]], requires_grad=True)
    loss = xtr_loss(logits, torch.tensor([[0.0, 1.0]]), torch.ones(1, 2, dtype=torch.bool))
    loss.backward()
    assert loss.item() == pytest.approx(2e4)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_eq_8_concatenated_embeddings(make_model: MakeModel, view: ModelView) -> None:
    model, users = make_model(), users_of(view)
    h = histories_of(model, users)
    assert h.video.shape == (len(LENGTHS), 50, 92)  # D1
    assert h.live.shape == (len(LENGTHS), 50, 64)  # D2
    sides = [reference_of(model).user_side(users, u) for u in range(len(LENGTHS))]
    assert_events_close(h.video, [side.video for side in sides])
    assert_events_close(h.live, [side.live for side in sides])
    t = tensors(users)
    np.testing.assert_allclose(
        model.inputs.users(t["user"], t["now"]).detach(), np.array([side.user for side in sides]), atol=TOLERANCE
    )
    candidates = random_candidates(view, (1, 40), seed=1)[0]
    embedded = model.candidate_embedding(torch.from_numpy(candidates), quantise(torch.zeros(40).long(), 60))
    expected = reference.embed_all(weights_of(model), view, "candidate", candidates, 0)
    np.testing.assert_allclose(embedded.detach(), expected, atol=TOLERANCE)


# Frequency gates, attentions, preferences


def farm_parts(model: Ranker) -> tuple[Histories, list[reference.UserSide], Reference]:
    users, oracle = users_of(model.view, seed=4), reference_of(model)
    sides = [oracle.user_side(users, u) for u in range(len(LENGTHS))]
    return histories_of(model, users), sides, oracle


@pytest.mark.parametrize("spectrum", ["proportional", "count", "padded"])
@pytest.mark.parametrize("domain", ["video", "live"])
def test_eq_9_mixed_frequencies(make_model: MakeModel, domain: str, spectrum: str) -> None:
    model = make_model(spectrum=spectrum)
    h, sides, oracle = farm_parts(model)
    module = getattr(model.farm, f"{domain}_frequency")
    out = module(getattr(h, domain), getattr(h, f"{domain}_valid"))
    assert_events_close(out, [oracle.attended(side)[domain] for side in sides])


@pytest.mark.parametrize("domain", ["video", "live"])
def test_eq_10_gates_are_one_number_per_user_and_domain(make_model: MakeModel, domain: str) -> None:
    model = make_model()
    h, sides, oracle = farm_parts(model)
    module = getattr(model.farm, f"{domain}_frequency")
    gates = module.gates(getattr(h, domain), getattr(h, f"{domain}_valid"))
    for name, values in zip(("low_gate", "high_gate"), gates, strict=True):
        w = under(oracle.w, f"farm.{domain}_frequency.{name}")
        expected = [reference.gate(w, getattr(side, domain)) for side in sides]
        assert values.shape == (len(LENGTHS), 1, 1)
        np.testing.assert_allclose(values.flatten().detach(), expected, atol=TOLERANCE)
        assert np.std(expected) > 0.01


def attended_candidates(model: Ranker, name: str) -> None:
    """The target attention `name` of five queries per user over its history."""
    h, sides, oracle = farm_parts(model)
    assert model.farm is not None
    state, _ = model.farm(h)
    width = model.config.heads * model.config.head_width
    query = torch.randn(len(LENGTHS), 5, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    valid = state["video_valid" if name == "video" else "live_valid"]
    out = model.farm.targets[name](query, state[f"{name}_keys"], state[f"{name}_values"], valid)
    w = under(oracle.w, f"farm.targets.{name}")
    expected = [
        reference.target_attention(w, query[u].numpy(), oracle.attended(side)[name], model.config.heads)
        for u, side in enumerate(sides)
    ]
    np.testing.assert_allclose(out.detach().numpy(), np.array(expected), atol=TOLERANCE)


@pytest.mark.parametrize("domain", ["video", "live"])
@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("sink", [False, True])
def test_eq_11_target_attention(make_model: MakeModel, domain: str, heads: int, sink: bool) -> None:
    attended_candidates(make_model(heads=heads, sink=sink), domain)


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("residual", [False, True])
def test_eq_12_self_attention(make_model: MakeModel, heads: int, residual: bool) -> None:
    model = make_model(heads=heads, residual=residual)
    h, sides, oracle = farm_parts(model)
    assert model.farm is not None
    assert model.farm.self_attentions is not None
    video, live = model.farm.self_attentions(h.video, h.live, h.video_valid, h.live_valid)
    hats = [oracle.hats(side) for side in sides]
    assert_events_close(video, [v for v, _ in hats])
    assert_events_close(live, [v for _, v in hats])


def test_eq_13_preferences_are_mlps_of_masked_means(make_model: MakeModel) -> None:
    model = make_model()
    h, sides, oracle = farm_parts(model)
    assert model.farm is not None
    _, preferences = model.farm(h)
    assert preferences is not None
    expected = [oracle.preferences(side) for side in sides]
    np.testing.assert_allclose(preferences.video.detach(), np.array([v for v, _ in expected]), atol=TOLERANCE)
    np.testing.assert_allclose(preferences.live.detach(), np.array([v for _, v in expected]), atol=TOLERANCE)
    assert preferences.takes_part.tolist() == [v > 0 and n > 0 for v, n in LENGTHS]


@pytest.mark.parametrize(("normalise", "tau"), [(True, 0.07), (True, 1.0), (False, 1.0), (False, 0.07)])
def test_eq_14_contrastive_loss(normalise: bool, tau: float) -> None:
    rng = np.random.default_rng(0)
    live, video = rng.normal(size=(2, 12, 16))
    users, part = rng.integers(0, 8, 12), rng.random(12) < 0.8
    arguments = [torch.from_numpy(a) for a in (live, video, users, part)]
    loss = align_loss(*arguments, tau, normalise).item()  # type: ignore[arg-type]
    assert loss == pytest.approx(reference.align_loss(live, video, users, part, tau, normalise), rel=1e-6)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("sink", [False, True])
def test_eq_16_cross_attention_asks_with_the_live_history(make_model: MakeModel, residual: bool, sink: bool) -> None:
    model = make_model(residual=residual, sink=sink)
    h, sides, oracle = farm_parts(model)
    assert model.farm is not None
    assert model.farm.self_attentions is not None
    assert model.farm.fuse is not None
    hats = model.farm.self_attentions(h.video, h.live, h.video_valid, h.live_valid)
    cross = model.farm.fuse(*hats, h.video_valid, h.live_valid)
    assert_events_close(cross, [oracle.attended(side)["cross"] for side in sides])


def test_eq_17_target_attention_over_the_fused_history(make_model: MakeModel) -> None:
    attended_candidates(make_model(), "cross")


@pytest.mark.parametrize("settings", [{}, {"fuse": False}, {"arch": "ple"}, {"multitask": "shared_bottom"}])
def test_eq_18_input_of_the_multi_task_head(make_model: MakeModel, settings: dict) -> None:
    """Candidate and attentions, side by side, for each candidate; user, context and both means, once for each user."""
    model = make_model(**settings)
    users, oracle = users_of(model.view), reference_of(model)
    candidates = random_candidates(model.view, (len(LENGTHS), 2), seed=5)
    seen: list[torch.Tensor] = []
    first = model.head.first
    hooks = [m.register_forward_pre_hook(lambda _, x: seen.append(x[0])) for m in (first.user, first.candidate)]
    state, _ = model.user_state(**tensors(users))
    model.candidate_logits(state, torch.from_numpy(candidates), torch.arange(len(LENGTHS)))
    for hook in hooks:
        hook.remove()
    for u in range(len(LENGTHS)):
        side = oracle.user_side(users, u)
        np.testing.assert_allclose(seen[0][u].detach(), oracle.head_user(side), atol=TOLERANCE)
        embedded = reference.embed_all(oracle.w, model.view, "candidate", candidates[u], 0)
        expected = np.array([oracle.head_input(side, candidate) for candidate in embedded])
        np.testing.assert_allclose(seen[1][u].detach(), expected, atol=TOLERANCE)


@pytest.mark.parametrize("settings", [{}, {"align_weight": 0.9, "align_normalise": False, "temperature": 1.0}])
def test_eq_15_total_loss(make_model: MakeModel, settings: dict) -> None:
    model = make_model(seed=2, **settings)
    batch = batch_of(model.view)
    contrast = expected_align_loss(model, batch)
    assert contrast > 0.1
    expected = expected_xtr_loss(model, batch) + model.config.align_weight * contrast
    assert total_loss(model, batch).item() == pytest.approx(expected, rel=1e-6)


# Edges


@pytest.mark.parametrize("settings", [{}, {"arch": "ple"}])
def test_empty_histories_give_finite_results_and_gradients(make_model: MakeModel, settings: dict) -> None:
    model = make_model(**settings).train()
    batch = batch_of(model.view)
    empty = np.zeros_like(batch.users.video_length)
    for lengths in ({}, {"video_length": empty}, {"video_length": empty, "live_length": empty}):
        model.zero_grad()
        loss = total_loss(model, replace(batch, users=replace(batch.users, **lengths)))
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    model.eval()
