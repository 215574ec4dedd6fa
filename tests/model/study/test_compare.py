"""Figures, families and claims against plain loops, on samples made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from model.datasets.prepared import Prepared
from model.evaluate import measure
from model.study.bounds import bounds
from model.study.claims import make_claims
from model.study.compare import CONTRAST, Comparison, compare, questions
from model.study.drawn import METRICS, Cell, Drawn, draw_figures, parts, summary
from model.study.parameters import Parameters
from model.study.simulation import Simulation

TASKS = ("ctr", "ltr")
GROUPS = ("low", "mid", "high", "full")
SEEDS, DRAWS = 3, 40


def silent(text: str) -> None:
    """No progress."""


@pytest.fixture(scope="module")
def scores(prepared: Prepared) -> dict[str, list[np.ndarray]]:
    """By variant, per seed: noise around the labels, less of it for farm."""
    rows = prepared.rows("test")
    labels = np.maximum(prepared.samples["labels"][rows], 0)
    rng = np.random.default_rng(0)
    spreads = {"farm": 1.0, "ple": 3.0}
    return {
        name: [(labels + rng.normal(0, s, labels.shape)).astype(np.float32) for _ in range(SEEDS)]
        for name, s in spreads.items()
    }


@pytest.fixture(scope="module")
def drawn(prepared: Prepared, scores: dict[str, list[np.ndarray]]) -> Drawn:
    return draw_figures(prepared, scores, DRAWS, silent)


# Figures


def test_the_first_draw_is_what_evaluate_measures(
    prepared: Prepared, scores: dict[str, list[np.ndarray]], drawn: Drawn
) -> None:
    for variant, per_seed in scores.items():
        for seed, values in enumerate(per_seed):
            exact = measure(prepared, prepared.rows("test"), values)
            measurable = [task for task, figures in exact.items() if figures.measurable]
            assert {c.task for c in drawn.figures[variant] if c.group is None} == set(measurable)
            assert "ctr" in measurable
            for task in measurable:
                for metric in METRICS:
                    figure = drawn.figures[variant][Cell(task, metric)]
                    assert figure.shape == (SEEDS, DRAWS + 1)
                    assert figure[seed, 0] == pytest.approx(getattr(exact[task], metric), abs=1e-12)


def test_a_group_is_its_users_alone(prepared: Prepared, scores: dict[str, list[np.ndarray]], drawn: Drawn) -> None:
    rows = prepared.rows("test")
    group = prepared.users["activity_group"][prepared.samples["user_row"][rows]]
    found = [cell for cell in drawn.figures["farm"] if cell.group is not None]
    assert found
    for cell in found:
        members = group == GROUPS.index(str(cell.group))
        exact = measure(prepared, rows[members], scores["farm"][1][members])[cell.task]
        assert drawn.figures["farm"][cell][1, 0] == pytest.approx(exact.auc, abs=1e-12)


def test_what_is_not_measurable_is_said(prepared: Prepared, drawn: Drawn) -> None:
    said = {(part["task"], part["group"]) for part in drawn.not_measurable}
    assert said == {(part.task, part.group) for part in parts(prepared) if not part.measurable}
    assert said
    assert not any((cell.task, cell.group) in said for cell in drawn.figures["farm"])


def test_a_summary_is_over_seeds(drawn: Drawn) -> None:
    figures = drawn.figures["farm"][Cell("ctr", "auc")]
    found = summary(figures)
    assert found["seeds"] == figures[:, 0].tolist()
    assert found["mean"] == pytest.approx(np.mean(found["seeds"]))
    assert found["std"] == pytest.approx(np.std(found["seeds"], ddof=1))
    assert summary(None) == {"mean": None, "std": None, "seeds": []}


def test_bounds_are_the_auc_of_known_truths(prepared: Prepared, scores: dict[str, list[np.ndarray]]) -> None:
    truth = np.full(prepared.samples["labels"].shape, np.nan, np.float32)
    rows = prepared.rows("test")
    truth[rows] = scores["farm"][0]
    oracle = truth.copy()
    oracle[rows[0], 0] = np.nan
    known = Prepared(**{**vars(prepared), "samples": {**prepared.samples, "truth": truth, "oracle": oracle}})
    found = bounds(known, Simulation(), silent)
    assert found["truth"]["ctr"] == measure(prepared, rows, scores["farm"][0])["ctr"].auc
    assert found["oracle"]["ctr"] is None
    assert set(bounds(prepared, Simulation(), silent)) <= {"truth"}


# Families


def made(variants: dict[str, float], tasks: tuple[str, ...] = TASKS, groups: tuple[str, ...] = GROUPS) -> Drawn:
    """Figures by hand: each variant's own level, small noise of seeds and draws, groups spread around it."""
    rng = np.random.default_rng(4)
    drawn = Drawn(tasks, groups, {name: {} for name in variants})
    shift = {"low": 0.04, "mid": 0.02, "high": -0.02, "full": -0.04}
    cells = [Cell(task, metric) for task in tasks for metric in METRICS]
    cells += [Cell(task, "auc", group) for task in tasks for group in groups]
    for name, level in variants.items():
        for cell in cells:
            gain = shift.get(str(cell.group), 0.0) if name == "farm" else 0.0
            noise = rng.normal(0, 0.001, (SEEDS, 1)) + rng.normal(0, 0.001, (1, DRAWS + 1))
            drawn.figures[name][cell] = level + gain + noise
    return drawn


def test_the_families_of_the_main_study() -> None:
    drawn = made({"farm": 0.8, "ple": 0.7, "no_align": 0.75, "cutoff=3": 0.8, "mmoe": 0.7})
    asked = questions(list(drawn.figures), drawn, Simulation(planted={"no_align": ["ltr"]}))
    count = {family: sum(q.family == family for q in asked) for family in {q.family for q in asked}}
    assert count == {
        "base": 6,
        "ablations": 1,
        "ablations_rest": 5,
        "heads": 6,
        "other: cutoff": 6,
        "base_by_group": 8,
        "groups": 1,
    }
    assert all(q.a == "farm" for q in asked)
    keys = {(q.b, q.task, q.metric, q.group) for q in asked}
    assert len(keys) == len(asked)


def test_planted_tasks_are_the_data_s_or_all() -> None:
    tasks = ("ctr", "ltr", "cmtr")
    known = Simulation(planted={"no_video_frequency": ["ctr"], "no_live_frequency": ["ltr", "gtr"]})
    assert known.tasks_of("no_live_frequency", tasks) == ["ltr"]
    assert known.tasks_of("no_frequency", tasks) == ["ctr", "ltr"]
    assert known.tasks_of("no_align", tasks) == []  # its structure was not planted
    assert Simulation().tasks_of("no_align", tasks) == list(tasks)
    assert Simulation(null=True, planted={}).tasks_of("no_align", tasks) == list(tasks)


def test_a_comparison_is_the_mean_of_paired_differences() -> None:
    drawn = made({"farm": 0.8, "ple": 0.7})
    answers = compare(drawn, Simulation())
    (one,) = [c for c in answers if (c.family, c.task, c.metric) == ("base", "ltr", "gauc")]
    cell = Cell("ltr", "gauc")
    paired = drawn.figures["farm"][cell] - drawn.figures["ple"][cell]
    assert one.seeds == paired[:, 0].tolist()
    assert one.difference == pytest.approx(paired[:, 0].mean())
    assert one.interval[0] < one.interval_plain[0] < 0.1 < one.interval_plain[1] < one.interval[1]
    assert one.p_holm >= one.p


def test_the_group_contrast_is_the_gain_of_the_less_active() -> None:
    (one,) = [c for c in compare(made({"farm": 0.8, "ple": 0.7}), Simulation()) if c.family == "groups"]
    assert (one.task, one.group) == ("ctr", CONTRAST)
    assert one.difference == pytest.approx((0.04 + 0.02) / 2 - (-0.02 - 0.04) / 2, abs=0.005)
    assert one.interval == one.interval_plain  # a family of one


def test_without_the_four_groups_there_is_no_contrast() -> None:
    answers = compare(made({"farm": 0.8, "ple": 0.7}, groups=("low", "mid", "new")), Simulation())
    assert not [c for c in answers if c.family == "groups"]
    assert [c.group for c in answers if c.family == "base_by_group" and c.task == "ctr"] == ["low", "mid", "new"]


def test_what_is_not_measurable_is_in_no_family() -> None:
    drawn = made({"farm": 0.8, "ple": 0.7})
    for figures in drawn.figures.values():
        for cell in [c for c in figures if c.task == "ltr" and c.group in (None, "low")]:
            del figures[cell]
    answers = compare(drawn, Simulation())
    assert {c.task for c in answers if c.family == "base"} == {"ctr"}
    assert ("ltr", "low") not in {(c.task, c.group) for c in answers}


# Claims

PARAMETERS = {"farm": Parameters(200, 100, 100), "ple": Parameters(195, 100, 95)}


def claims_of(drawn: Drawn, null: bool = False, bound: Any = None, planted: Any = None) -> list[dict[str, Any]]:
    results = {
        name: {task: {m: summary(figures.get(Cell(task, m))) for m in METRICS} for task in TASKS}
        for name, figures in drawn.figures.items()
    }
    return make_claims(
        compare(drawn, Simulation(null=null, planted=planted)), PARAMETERS, results, bound or {}, "ctr", null
    )


def test_claims_hold_where_farm_is_above() -> None:
    drawn = made({"farm": 0.8, "ple": 0.7, "no_align": 0.8})
    claims = claims_of(drawn, planted={"no_align": ["ltr"]})
    assert [c["holds"] for c in claims if "minus ple" in c["claim"]] == [True] * 7
    assert [c["holds"] for c in claims if "minus no_align" in c["claim"]] == [False]
    assert len(claims) == 9  # 6 and the contrast, the ablation, the parameters


def test_parameters_are_within_a_tenth_by_either_count() -> None:
    (claim,) = [c for c in claims_of(made({"farm": 0.8, "ple": 0.7})) if "parameters" in c["claim"]]
    assert claim["value"] == pytest.approx(0.05)  # of the dense ones; of all 0.025
    assert claim["holds"]


@pytest.mark.parametrize(("level", "holds"), [(0.8, True), (0.7, False)])
def test_null_data_claims_that_nothing_is_found(level: float, holds: bool) -> None:
    drawn = made({"farm": 0.8, "ple": level}, groups=())
    (null, parameters) = claims_of(drawn, null=True)
    assert null["value"] == (0 if holds else 6)
    assert null["holds"] is holds
    assert "parameters" in parameters["claim"]


def test_the_share_of_the_way_to_the_oracle_is_a_goal() -> None:
    drawn = made({"farm": 0.8, "ple": 0.7})
    share = claims_of(drawn, bound={"oracle": {"ctr": 0.9, "ltr": None}})[-1]
    assert share["value"] == pytest.approx(0.5, abs=0.02)
    assert share["goal"]
    assert claims_of(drawn, bound={"oracle": {"ctr": None, "ltr": None}})[-1]["value"] is None
    assert not any("goal" in c for c in claims_of(drawn, bound={"truth": {"ctr": 0.9}}))


def test_comparisons_are_json_of_the_agreed_shape() -> None:
    record = compare(made({"farm": 0.8, "ple": 0.7}), Simulation())[0].as_json()
    assert list(record) == list(Comparison.__dataclass_fields__)
    assert isinstance(record["interval"], list)
