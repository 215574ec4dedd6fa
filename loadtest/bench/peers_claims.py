"""Of `farm bench peers`: figures of the report and its claims."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from loadtest.bench.peers_blocks import Block, Contestant
from loadtest.bench.peers_ratios import paired_ratio
from model.figures import claim

TILED_BOUND = 15.0  # times the requests/s of every peer with tiled histories
_TOWERS_BOUNDS = {"fastapi": 1.3, "litserve": 1.3, "bentoml": 1.3, "ray": 3.0, "ray-haproxy": 3.0}


def figures_of(ours: Contestant, rivals: Sequence[Contestant], failed: dict[str, str]) -> dict[str, Any]:
    """Medians and blocks of every server, and the ratios of ours to each; errors of blocks go to `failed`."""
    failed |= {one.name: one.error for one in (ours, *rivals) if one.error is not None}
    servers = {one.name: _server(one) for one in (ours, *rivals) if one.closed}
    good = [one for one in rivals if one.error is None and ours.error is None]
    saturated = {one.name: asdict(_ratio(ours.closed, one.closed, lambda block: block.per_second)) for one in good}
    able = [one for one in good if one.open]
    p99 = {one.name: asdict(_ratio(ours.open, one.open, lambda block: block.p99_ms)) for one in able}
    return {"servers": servers, "requests_per_s_ratio": saturated, "p99_ratio": p99}


def claims_of(names: Sequence[str], figures: dict[str, Any]) -> list[dict[str, Any]]:
    """A peer that failed has claims that do not hold."""
    ratios = figures["requests_per_s_ratio"]
    claims = []
    for name in names:
        text = f"requests/s, ours / {name}, saturated"
        claims.append(claim(f"{text}, tiled histories", _part(ratios, f"{name} tiled", "ratio"), ">=", TILED_BOUND))
        towers = f"{name} towers"
        if name in _TOWERS_BOUNDS:
            bound = _TOWERS_BOUNDS[name]
            claims.append(claim(f"{text}, two towers", _part(ratios, towers, "ratio"), ">=", bound))
        else:
            claims.append(claim(f"{text}, two towers, lower end of 95%", _part(ratios, towers, "low"), ">", 1.0))
    best = _best_at_equal_load(figures)
    text = f"p99 at equal load, ours / {best or 'the best peer'}"
    return [*claims, claim(text, _part(figures["p99_ratio"], best, "ratio"), "<=", 1.0)]


def _best_at_equal_load(figures: dict[str, Any]) -> str | None:
    """The peer with the least median p99."""
    p99 = {name: figures["servers"][name]["open"]["p99_ms"] for name in figures["p99_ratio"]}
    return min(p99, key=lambda name: p99[name]) if p99 else None


def _part(ratios: dict[str, Any], name: str | None, part: str) -> float | None:
    found = ratios.get(name or "")
    return None if found is None else float(found[part])


def _server(one: Contestant) -> dict[str, Any]:
    found = {"difference": one.difference, "idle_cpu": one.idle_cpu, "closed": _medians(one.closed)}
    return found | ({"open": _medians(one.open)} if one.open else {})


def _medians(blocks: Sequence[Block]) -> dict[str, Any]:
    each = [asdict(block) for block in blocks]
    return {**{name: median(block[name] for block in each) for name in each[0]}, "blocks": each}


def _ratio(ours: Sequence[Block], theirs: Sequence[Block], figure: Callable[[Block], float]) -> Any:
    return paired_ratio([figure(block) for block in ours], [figure(block) for block in theirs])
