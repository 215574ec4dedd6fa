"""Preference align analysis (section 4.4; Figure 3): cosine of h_video and h_live with and without C-PA.

A model trained without Eq. 13 has no h to compare, so "without" is a model that has Eq. 13 and was trained with the
weight 0 of Eq. 14: its h exists, and nothing trains the MLPs that make it.
Letters: U users, W align width.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from model.evaluate import tensors
from model.farm import Ranker
from model.report.markup import Html, Table, note, number, panels, paragraph
from model.report.page import section
from model.report.subject import Figures, Subject
from model.report.svg import Series, steps
from model.study.grid import FARM

TITLE = "Preference align (Figure 3)"
WITHOUT = "align_weight=0"
_EDGES = np.linspace(-1, 1, 41)


def measure(subject: Subject) -> Figures:
    without = without_align(subject)
    names = {"with": FARM, "without": without}
    found = {kind: _variant(subject, name) for kind, name in names.items() if subject.seeds(name)}
    gaps = {kind: of["gap"] for kind, of in found.items() if of is not None}
    absent = [name for kind, name in names.items() if found.get(kind) is None]
    return {
        "variants": {kind: of for kind, of in found.items() if of is not None},
        "edges": _EDGES.tolist(),
        "gap_with_minus_without": gaps["with"] - gaps["without"] if len(gaps) == 2 else None,
        "missing": subject.missing(*absent) if absent else None,
    }


def without_align(subject: Subject) -> str:
    """The variant with Eq. 13 that is trained without Eq. 14."""
    for name, variant in subject.record.get("variants", {}).items():
        settings = variant.get("settings", {})
        if settings.get("align_weight") == 0 and settings.get("align", True) and settings.get("arch", FARM) == FARM:
            return str(name)
    return WITHOUT


def _variant(subject: Subject, name: str) -> Figures | None:
    """Histograms of the first seed's cosines, and the gap of every seed; None without h or with under two users."""
    per_seed = {}
    for seed in subject.seeds(name):
        model = subject.model(name, seed)
        pair = None if model is None else cosines(subject, model)
        if pair is None:
            return None
        per_seed[seed] = pair
    same, other = next(iter(per_seed.values()))
    gaps = {seed: float(s.mean() - o.mean()) for seed, (s, o) in per_seed.items()}
    return {
        "variant": name,
        "users": len(same),
        "same_mean": float(same.mean()),
        "other_mean": float(other.mean()),
        "gap": float(np.mean(list(gaps.values()))),
        "gaps": gaps,
        "same": (np.histogram(same, _EDGES)[0] / len(same)).tolist(),
        "other": (np.histogram(other, _EDGES)[0] / len(other)).tolist(),
    }


@torch.inference_mode()
def cosines(subject: Subject, model: Ranker) -> tuple[np.ndarray, np.ndarray] | None:
    """Cosine of h_live with the user's own h_video, and with another user's.  [U] each, users with events in both
    domains.  None when the model has no h, or fewer than two users do."""
    videos, lives = [], []
    for batch in subject.batches(subject.user_rows()):
        _, preferences = model.user_state(**tensors(batch))
        if preferences is None:
            return None
        videos.append(functional.normalize(preferences.video[preferences.takes_part], dim=-1))
        lives.append(functional.normalize(preferences.live[preferences.takes_part], dim=-1))
    if sum(map(len, lives)) < 2:
        return None
    video, live = torch.cat(videos), torch.cat(lives)  # [U, W] each
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(live)))
    other = torch.empty_like(order)
    other[order] = order.roll(1)  # a cycle: nobody is their own other
    cosine = ((live * video).sum(-1), (live * video[other]).sum(-1))
    return cosine[0].clamp(-1, 1).numpy(), cosine[1].clamp(-1, 1).numpy()


def render(figures: Figures) -> Html:
    missing = [note(figures["missing"])] if figures["missing"] else []
    if not figures["variants"]:
        return section("align", TITLE, *missing)
    explained = paragraph(
        "Cosine of the user's preference in the live domain (h live, Eq. 13) with their own in the video domain, and"
        " with that of another user. What counts is how far apart the two are: a model may make all preferences alike."
        " Without C-PA nothing trains the MLPs of Eq. 13, so their h has initial weights."
    )
    charts = [_chart(figures["edges"], kind, of) for kind, of in sorted(figures["variants"].items(), reverse=True)]
    parts = [panels(*charts), _table(figures["variants"])]
    if figures["gap_with_minus_without"] is not None:
        parts.append(paragraph(f"With C-PA the gap is greater by {number(figures['gap_with_minus_without'])}."))
    return section("align", TITLE, explained, *parts, *missing)


def _chart(edges: list[float], kind: str, of: Figures) -> Html:
    series = [Series("same user", [], of["same"], style=0), Series("another user", [], of["other"], style=1)]
    return steps(
        f"{kind.capitalize()} C-PA ({of['variant']})", edges, series, "cosine of h video, h live", "share of users"
    )


def _table(variants: Figures) -> Html:
    rows = [
        [
            f"{kind} C-PA ({of['variant']})",
            f"{of['users']:,}",
            number(of["same_mean"]),
            number(of["other_mean"]),
            number(of["gap"]),
            ", ".join(number(gap) for gap in of["gaps"].values()),
        ]
        for kind, of in variants.items()
    ]
    columns = ["variant", "users", "same user", "another user", "gap, mean over seeds", "gap of each seed"]
    return Table("Mean cosines (of the first seed), and same minus other", columns, rows).html()
