"""What a study claims: its comparisons against the issue's sentences."""

from __future__ import annotations

from typing import Any

from model.figures import claim
from model.study.bounds import Bounds
from model.study.compare import CONTRAST, Comparison
from model.study.grid import BASE, FARM
from model.study.parameters import Parameters

SHARE_GOAL = 0.9  # of the way from the base model to the oracle
PARAMETERS_WITHIN = 0.1  # of FARM's
CLAIMED = ("base", "ablations", "groups")  # families whose intervals are claims

Claims = list[dict[str, Any]]
Results = dict[str, dict[str, dict[str, Any]]]  # variant, task, metric: mean, std, seeds


def make_claims(
    comparisons: list[Comparison],
    parameters: dict[str, Parameters],
    results: Results,
    bounds: Bounds,
    click: str,
    null: bool,
) -> Claims:
    """The claims of a study.  null: on data without structure the claim is that nothing is found."""
    claimed = [one for one in comparisons if one.family in CLAIMED]
    found = _null_claims(claimed) if null else [_above_zero(one) for one in claimed]
    return found + _parameter_claims(parameters) + ([] if null else _share_claims(results, bounds, click))


def _above_zero(one: Comparison) -> dict[str, Any]:
    of = f", gain of {CONTRAST}" if one.group == CONTRAST else ""
    text = (
        f"{one.task} {one.metric.upper()}, {one.a} minus {one.b}{of}: lower end of the 95% interval corrected by Holm"
    )
    return claim(text, one.interval[0], ">", 0.0)


def _null_claims(claimed: list[Comparison]) -> Claims:
    if not claimed:
        return []
    excluding = sum(one.excludes_zero for one in claimed)
    text = f"null data: corrected intervals that leave 0 out, of {len(claimed)} of the families {', '.join(CLAIMED)}"
    return [claim(text, excluding, "<=", 0)]


def _parameter_claims(parameters: dict[str, Parameters]) -> Claims:
    if len(parameters) < 2:
        return []
    farm = parameters[FARM]
    off = [abs(getattr(p, kind) / getattr(farm, kind) - 1) for p in parameters.values() for kind in ("total", "dense")]
    text = "parameters, all and without tables: greatest difference of a variant from farm, as a share of farm's"
    return [claim(text, max(off), "<=", PARAMETERS_WITHIN)]


def _share_claims(results: Results, bounds: Bounds, click: str) -> Claims:
    """A goal: it is reported, and no reason to fail."""
    if "oracle" not in bounds or BASE not in results:
        return []
    farm, base = (results[name][click]["auc"]["mean"] for name in (FARM, BASE))
    oracle = bounds["oracle"][click]
    share = None
    if farm is not None and base is not None and oracle is not None and oracle > base:
        share = (farm - base) / (oracle - base)
    text = f"{click} AUC: share of the way from {BASE} to the oracle that {FARM} goes (a goal)"
    return [claim(text, share, ">=", SHARE_GOAL) | {"goal": True}]
