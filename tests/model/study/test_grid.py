"""What a study compares: variants by name, and their parameters matched."""

from __future__ import annotations

import pytest

from feature_store.view import ModelView
from model.config import ModelConfig, split_settings
from model.farm import Ranker
from model.study.grid import ABLATIONS, HEADS, SETS, GridError, parse_variants
from model.study.parameters import TOLERANCE, count_parameters, match_dense


def names(*texts: str) -> list[str]:
    return [variant.name for variant in parse_variants(list(texts))]


def test_farm_is_in_every_study_and_first() -> None:
    assert names() == ["farm"]
    assert names("ple") == ["farm", "ple"]
    assert names("ple", "farm", "ple") == ["farm", "ple"]


def test_sets_and_variants_can_be_mixed() -> None:
    assert names("main", "no_frequency", "cutoff=3") == [*SETS["main"], "no_frequency", "cutoff=3"]


@pytest.mark.parametrize("name", SETS)
def test_every_set_is_of_variants_with_settings_of_their_own(name: str) -> None:
    variants = parse_variants([name])
    assert len(variants) == len(SETS[name]) >= 3
    settings = [split_settings(variant.settings)[0] for variant in variants]
    assert all(a != b for i, a in enumerate(settings) for b in settings[:i])


def test_an_ablation_takes_its_modules_away(view: ModelView) -> None:
    modules = {
        "no_video_frequency": ["video_frequency"],
        "no_live_frequency": ["live_frequency"],
        "no_frequency": ["video_frequency", "live_frequency"],
        "no_align": ["video_preference", "live_preference"],
        "no_fuse": ["fuse"],
    }
    assert modules.keys() == ABLATIONS.keys()
    for name, gone in modules.items():
        config, _ = split_settings(parse_variants([name])[1].settings)
        farm = Ranker(config, view).farm
        assert farm is not None
        every = {module for several in modules.values() for module in several}
        assert {module for module in every if getattr(farm, module) is None} == set(gone)


def test_settings_can_be_written_out() -> None:
    _, plain, named = parse_variants(["cutoff=3,align=false", "wide:expert_width=128,dropout=0.1"])
    assert (plain.name, plain.settings) == ("cutoff=3,align=false", {"arch": "farm", "cutoff": 3, "align": False})
    assert (named.name, named.settings) == ("wide", {"arch": "farm", "expert_width": 128, "dropout": 0.1})
    assert parse_variants(["small:arch=ple,expert_width=8"])[1].settings == {"arch": "ple", "expert_width": 8}


@pytest.mark.parametrize(
    ("texts", "why"),
    [
        (["no_such"], "'no_such': unknown; known: main"),
        (["cutof=3"], "cutof: unknown setting"),
        (["x:cutoff=many"], "cutoff: takes int"),
        (["x:cutoff"], "unknown; known"),
        (["../x:cutoff=3"], "'../x': it names a folder"),
        (["ple:cutoff=3"], "'ple': the name is taken"),
        (["x:seed=3"], "'x': the seed"),
        (["x:cutoff=3", "x:cutoff=7"], "'x': given twice"),
    ],
)
def test_what_cannot_be_read_is_named(texts: list[str], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_variants(texts)


def test_grid_errors_are_value_errors() -> None:
    assert issubclass(GridError, ValueError)


# Parameters


@pytest.mark.parametrize("arch", ["farm", *HEADS])
def test_parameters_are_counted_as_the_model_has_them(view: ModelView, arch: str) -> None:
    model = Ranker(ModelConfig(arch=arch), view)
    counted = count_parameters({"arch": arch}, view)
    assert counted.total == sum(weight.numel() for weight in model.parameters())
    assert counted.tables == sum(weight.numel() for weight in model.tables.parameters())
    assert counted.dense == counted.total - counted.tables


def test_counting_leaves_other_models_alone(view: ModelView) -> None:
    count_parameters({}, view)
    assert all(weight.numel() for weight in Ranker(ModelConfig(), view).parameters())


@pytest.mark.parametrize("name", [*HEADS, *ABLATIONS])
def test_every_variant_gets_as_many_dense_parameters_as_farm(view: ModelView, name: str) -> None:
    farm = count_parameters({}, view).dense
    settings = match_dense(parse_variants([name])[1].settings, view, farm)
    assert abs(count_parameters(settings, view).dense / farm - 1) <= TOLERANCE
    for neighbour in (-1, 1):  # no width near it is better
        other = {**settings, "expert_width": settings.get("expert_width", 64) + neighbour}
        distance = abs(count_parameters(other, view).dense - farm)
        assert distance >= abs(count_parameters(settings, view).dense - farm) or "expert_width" not in settings


def test_what_is_near_enough_is_left_alone(view: ModelView) -> None:
    settings = {"arch": "farm", "cutoff": 3}
    assert match_dense(settings, view, count_parameters({}, view).dense) == settings


def test_a_size_that_no_width_reaches_gets_the_nearest(view: ModelView) -> None:
    assert match_dense({"arch": "ple"}, view, 1)["expert_width"] == 1
