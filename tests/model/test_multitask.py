"""The multi-task family: who sees which expert, the papers' equations, the split product, a planted conflict."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import reference
import torch
from conftest import drawn_anew
from torch.nn.functional import binary_cross_entropy_with_logits

from model.config import ModelConfig, Multitask, parse_settings, split_settings
from model.multitask import MEMBERS, ExpertLayout, FirstLevel, Mixture, MultitaskHead, NextLevel, SplitLinear

FAMILY = get_args(Multitask)
TASKS, OWN, SHARED = 3, 2, 2
LAYOUT = ExpertLayout(TASKS, OWN, SHARED)
OWNERS = torch.tensor([0, 0, 1, 1, 2, 2, TASKS, TASKS])  # of each expert
CANDIDATE, USER, WIDTH = 6, 5, 8


def head_of(name: str, tasks: int = TASKS, seed: int = 0, **sizes: int) -> MultitaskHead:
    """A float64 head in eval mode whose every weight matters."""
    config = ModelConfig(arch=name, expert_width=WIDTH, tower_hidden=7, **sizes)  # type: ignore[arg-type]
    head = MultitaskHead(config, tasks, CANDIDATE, USER).double().eval()
    drawn_anew(head, seed)
    return head


def inputs(rows: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    """Candidates [N, CANDIDATE] and users [N, USER]."""
    generator = torch.Generator().manual_seed(0)
    both = torch.randn(rows, CANDIDATE + USER, generator=generator, dtype=torch.float64)
    return both[:, :CANDIDATE], both[:, CANDIDATE:]


def logits_of(head: MultitaskHead) -> torch.Tensor:
    candidate, user = inputs()
    with torch.inference_mode():
        logits: torch.Tensor = head(candidate, head.user_part(user))
    return logits


# Who sees which expert


def gate_weights(name: str, last: bool, scale: float = 1.0) -> torch.Tensor:
    """[N, gates, E]: with experts that are unit vectors, a mixture is its weights.  Without the residual of AdaTT."""
    mixture = Mixture(LAYOUT, MEMBERS[name], last)
    mixture.own = None
    logits = scale * torch.randn(5, mixture.gates, LAYOUT.experts, generator=torch.Generator().manual_seed(0))
    return mixture(logits, torch.eye(LAYOUT.experts).expand(5, -1, -1))


@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("name", MEMBERS)
def test_gates_sum_to_one_and_see_what_they_may(name: str, last: bool, scale: float) -> None:
    weights = gate_weights(name, last, scale)
    assert weights.shape[1] == TASKS + (not last)
    torch.testing.assert_close(weights.sum(-1), torch.ones(5, weights.shape[1]))
    for group in range(weights.shape[1]):
        sees_all = name in ("mmoe", "adatt") or group == TASKS
        seen = torch.full_like(OWNERS, sees_all, dtype=torch.bool) | torch.isin(OWNERS, torch.tensor([group, TASKS]))
        assert (weights[:, group, ~seen] == 0).all()
        if scale == 1.0:
            assert (weights[:, group, seen] > 0).all()


@pytest.mark.parametrize("last", [False, True])
def test_the_residual_of_adatt_adds_a_combination_of_the_own_experts(last: bool) -> None:
    mixture = Mixture(LAYOUT, MEMBERS["adatt"], last)
    assert mixture.own is not None
    groups = torch.arange(mixture.gates)
    own = OWNERS[None, :] == groups[:, None]
    assert torch.equal(mixture.own(), own / 2)  # the mean of two
    drawn_anew(mixture, seed=0)
    logits = torch.randn(5, mixture.gates, LAYOUT.experts, generator=torch.Generator().manual_seed(0))
    whole = mixture(logits, torch.eye(LAYOUT.experts).expand(5, -1, -1))
    residual = whole - gate_weights("adatt", last)
    torch.testing.assert_close(residual, mixture.own().expand(5, -1, -1), atol=1e-6, rtol=0)
    assert torch.equal(mixture.own() != 0, own)


@pytest.mark.parametrize(
    ("name", "levels", "meets"),
    [
        ("shared_bottom", 1, True),
        ("mmoe", 1, True),
        ("cgc", 2, False),
        ("ple", 1, False),
        ("ple", 2, True),
        ("ple", 3, True),
        ("adatt", 1, True),
        ("adatt", 2, True),
    ],
)
def test_which_tasks_an_expert_of_one_task_reaches(name: str, levels: int, meets: bool) -> None:
    """In CGC none but its own; in PLE others through a shared gate, so from two levels on."""
    head = head_of(name, levels=levels)
    before = logits_of(head)
    assert before.shape == (10, TASKS)
    with torch.no_grad():
        head.first.candidate.weight[:WIDTH] += 1.0  # the only expert of task 0
    after = logits_of(head)
    assert not torch.equal(before[:, 0], after[:, 0])
    for task in range(1, TASKS):
        assert torch.equal(before[:, task], after[:, task]) != meets


def test_other_tasks_experts_do_not_reach_a_task_in_one_level() -> None:
    level = NextLevel(LAYOUT, Mixture(LAYOUT, MEMBERS["ple"], last=True), WIDTH)
    groups = torch.randn(4, TASKS + 1, WIDTH, generator=torch.Generator().manual_seed(0))
    changed = groups.clone()
    changed[:, 1] += 1.0
    before, after = level(groups), level(changed)
    assert before.shape == (4, TASKS, WIDTH)
    assert torch.equal(before[:, [0, 2]], after[:, [0, 2]])
    assert not torch.equal(before[:, 1], after[:, 1])


# One member against another


def same_weights(source: MultitaskHead, target: MultitaskHead) -> None:
    """Every weight of `target` is in `source`."""
    weights = source.state_dict()
    target.load_state_dict({name: weights[name] for name in target.state_dict()})


def test_ple_of_one_level_is_cgc() -> None:
    ple, cgc = head_of("ple", levels=1, task_experts=2), head_of("cgc", levels=3, task_experts=2, seed=1)
    assert not torch.equal(logits_of(ple), logits_of(cgc))
    same_weights(ple, cgc)
    assert set(ple.state_dict()) == set(cgc.state_dict())
    torch.testing.assert_close(logits_of(ple), logits_of(cgc), atol=1e-6, rtol=0)


def test_adatt_of_one_level_without_its_residual_is_mmoe() -> None:
    adatt, mmoe = head_of("adatt", levels=1), head_of("mmoe", seed=1)
    same_weights(adatt, mmoe)
    assert (logits_of(adatt) - logits_of(mmoe)).abs().min() > 1e-3
    with torch.no_grad():
        adatt.first.mixture.own.weight.zero_()  # type: ignore[union-attr,operator]
    torch.testing.assert_close(logits_of(adatt), logits_of(mmoe), atol=1e-6, rtol=0)


# The papers' equations

SIZES = [
    {},
    {"levels": 1},
    {"levels": 3, "task_experts": 2, "shared_experts": 1},
    {"task_experts": 2, "shared_experts": 0},
]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("name", FAMILY)
def test_against_the_reference(name: str, sizes: dict[str, int]) -> None:
    head = head_of(name, **sizes)
    config = ModelConfig(arch=name, expert_width=WIDTH, tower_hidden=7, **sizes)  # type: ignore[arg-type]
    w = reference.weights_of(head)
    candidates, users = (part.numpy() for part in inputs())
    expected = [reference.head_logits(w, config, TASKS, c, u) for c, u in zip(candidates, users, strict=True)]
    np.testing.assert_allclose(logits_of(head).numpy(), np.array(expected), atol=1e-12)
    assert np.std(expected, axis=0).min() > 0.01  # the comparison is of something


# The split of the first product


@pytest.mark.parametrize("name", FAMILY)
def test_user_part_is_half_of_a_plain_product(name: str) -> None:
    first = head_of(name).first
    plain = torch.nn.Linear(CANDIDATE + USER, first.user.out_features).double()
    with torch.no_grad():
        plain.weight.copy_(torch.cat([first.candidate.weight, first.user.weight], dim=1))
        plain.bias.copy_(first.user.bias)
    candidate, user = torch.randn(2, 7, CANDIDATE).double(), torch.randn(2, USER).double()
    joint = plain(torch.cat([candidate, user[:, None].expand(-1, 7, -1)], dim=-1))
    part = first.user_part(user)[:, None]
    torch.testing.assert_close(SplitLinear.forward(first, candidate, part), joint, atol=1e-12, rtol=0)
    whole = first(torch.zeros_like(candidate), joint)
    torch.testing.assert_close(first(candidate, part), whole, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", MEMBERS)
def test_experts_and_gates_of_the_first_level_are_one_product(name: str) -> None:
    first = head_of(name, task_experts=2).first
    assert isinstance(first, FirstLevel)
    gates = TASKS if name in ("mmoe", "cgc") else TASKS + 1
    assert first.user.out_features == LAYOUT.experts * (WIDTH + gates)


# Sizes and gradients


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("name", FAMILY)
def test_no_weight_is_unused_and_gradients_are_finite(name: str, sizes: dict[str, int]) -> None:
    """A shared gate in the last level, or without shared experts to read it, would get no gradient."""
    head = head_of(name, seed=1, **sizes)
    candidate, user = inputs(64)
    logits = head(candidate, head.user_part(user))
    (logits.square() + logits).sum().backward()
    gradients = {parameter: weight.grad for parameter, weight in head.named_parameters()}
    assert [p for p, g in gradients.items() if g is None or not g.any() or not g.isfinite().all()] == []


@pytest.mark.parametrize(("own", "shared"), [(1, 1), (3, 2), (2, 0), (0, 2)])
@pytest.mark.parametrize("name", FAMILY)
def test_any_number_of_experts(name: str, own: int, shared: int) -> None:
    if (name, own) == ("adatt", 0):
        with pytest.raises(ValueError, match="task_experts: adatt adds a task's own experts"):
            head_of(name, task_experts=own, shared_experts=shared)
        return
    assert logits_of(head_of(name, task_experts=own, shared_experts=shared)).isfinite().all()


def test_default_sizes_are_comparable() -> None:
    """At the width of the default view's inputs, the smallest head has at least 0.85 of the largest's weights."""
    heads = [MultitaskHead(ModelConfig(multitask=name), 6, 256, 300) for name in FAMILY]
    weights = [sum(weight.numel() for weight in head.parameters()) for head in heads]
    assert min(weights) > 0.85 * max(weights)


# Configuration


@pytest.mark.parametrize("name", FAMILY)
def test_a_head_is_named_by_a_setting(name: str) -> None:
    farm, _ = split_settings(parse_settings([f"multitask={name}"]))
    assert (farm.arch, farm.head) == ("farm", name)
    base, _ = split_settings(parse_settings([f"arch={name}"]))
    assert base.head == name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"arch": "ple", "multitask": "mmoe"}, "multitask: of arch=farm only; arch=ple is the base model with that"),
        ({"task_experts": -1}, "task_experts: must be at least 0, is -1"),
        ({"shared_experts": -1}, "shared_experts: must be at least 0, is -1"),
        ({"task_experts": 0, "shared_experts": 0}, "shared_experts: must be at least 1 when task_experts is 0"),
    ],
)
def test_a_head_that_cannot_be_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(**settings)


def test_an_unknown_head_is_refused() -> None:
    with pytest.raises(ValueError, match="--set multitask: one of shared_bottom, mmoe, cgc, ple, adatt, not 'esmm'"):
        parse_settings(["multitask=esmm"])


# A planted conflict

CONFLICT = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1]]) / 2.0  # a direction per cluster of tasks
NO_CONFLICT = CONFLICT[:1].expand(3, -1)
# A tower reads two numbers in every head.  34 experts make the first layer of the shared bottom as large as all of PLE.
SMALL: dict[str, dict[str, int]] = {"shared_bottom": {"shared_experts": 33}, "ple": {}, "adatt": {}}


def planted(directions: torch.Tensor, seed: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features [N, 4] and probabilities [N, 6]: task k rises, task k + 3 falls with the distance along direction k."""
    x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed))
    distance = (x @ directions.T).abs()  # [N, 3]
    logits = 3.0 * (distance - 0.8)
    return x, torch.sigmoid(torch.cat([logits, -logits], dim=1))


def small_head(name: str, seed: int) -> MultitaskHead:
    """Width 2.  Biases start at 1, so that few of the two ReLUs are off for every sample."""
    torch.manual_seed(seed)
    config = ModelConfig(arch=name, expert_width=2, tower_hidden=4, dropout=0.0, **SMALL[name])  # type: ignore[arg-type]
    head = MultitaskHead(config, 6, 2, 2)
    for parameter, weight in head.named_parameters():
        if parameter.endswith("bias"):
            torch.nn.init.ones_(weight)
    return head


def excess_log_loss(name: str, directions: torch.Tensor, seed: int) -> float:
    """Held-out log loss above that of the true probabilities, after 100 steps of Adam."""
    head = small_head(name, seed)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.03)
    x, p = planted(directions, seed, rows=200)
    for _ in range(100):
        optimizer.zero_grad()
        binary_cross_entropy_with_logits(head(x[:, :2], head.user_part(x[:, 2:])), p).backward()
        optimizer.step()
    x, p = planted(directions, seed + 1000, rows=3000)
    with torch.inference_mode():
        loss = binary_cross_entropy_with_logits(head(x[:, :2], head.user_part(x[:, 2:])), p)
    return (loss - torch.distributions.Bernoulli(p).entropy().mean()).item()


def test_the_heads_of_the_conflict_are_of_one_size() -> None:
    weights = [sum(weight.numel() for weight in small_head(name, 0).parameters()) for name in SMALL]
    assert max(weights) < 1.1 * min(weights)


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_ple_and_adatt_beat_a_shared_bottom_where_clusters_of_tasks_conflict(seed: int) -> None:
    """Two shared numbers cannot hold three opposing directions; they can where all tasks want the same one."""
    shared_bottom = excess_log_loss("shared_bottom", CONFLICT, seed)
    assert excess_log_loss("ple", CONFLICT, seed) < 0.5 * shared_bottom
    assert excess_log_loss("adatt", CONFLICT, seed) < 0.5 * shared_bottom
    assert excess_log_loss("shared_bottom", NO_CONFLICT, seed) < 0.1 * shared_bottom
