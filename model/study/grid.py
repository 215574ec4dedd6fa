"""What a study can compare: variants by name, sets of them, and any other settings written out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from model.config import parse_settings

FARM, BASE = "farm", "ple"
HEADS = ("ple", "shared_bottom", "mmoe", "cgc", "adatt")  # base models, by their multi-task heads
ABLATIONS: dict[str, dict[str, Any]] = {
    "no_video_frequency": {"video_frequency": False},  # w/o V-FA
    "no_live_frequency": {"live_frequency": False},  # w/o L-FA
    "no_frequency": {"video_frequency": False, "live_frequency": False},  # w/o V-FA & L-FA
    "no_align": {"align": False},  # w/o C-PA
    "no_fuse": {"fuse": False},  # w/o C-PF
}
# FARM itself stands for the default value in the last four: training it twice would compare it with itself.
SETS: dict[str, tuple[str, ...]] = {
    "main": (FARM, BASE, "no_video_frequency", "no_live_frequency", "no_align", "no_fuse"),
    "ablations": (FARM, *ABLATIONS),
    "heads": (FARM, *HEADS),
    "cutoff": (FARM, *(f"cutoff={c}" for c in (1, 3, 7, 9))),
    "lambda": (FARM, *(f"align_weight=0.{tenths}" for tenths in (1, 2, 4, 5, 6, 7, 8, 9))),
    "spectrum": (FARM, "spectrum=count", "spectrum=padded"),
    "align": (FARM, "align_weight=0", "align_normalise=false", "align_detach=true"),
}
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=,+-]*")


class GridError(ValueError):
    """A variant that cannot be read, or two that are one."""


@dataclass(frozen=True)
class Variant:
    """One column of a study: a name, which is also a folder's, and what it changes of the study's settings."""

    name: str
    settings: dict[str, Any]


def parse_variants(texts: list[str]) -> list[Variant]:
    """Sets and variants as variants, each once, FARM first: everything is compared with it.

    A text is a set ("main"), a variant ("no_align"), `key=value,...` (FARM with other settings, named so) or
    `name:key=value,...`.  GridError says which text is wrong.

    >>> [variant.name for variant in parse_variants(["ple", "wide:expert_width=128"])]
    ['farm', 'ple', 'wide']
    """
    found: dict[str, Variant] = {}
    for text in (FARM, *texts):
        for variant in map(_variant, SETS.get(text, (text,))):
            if found.setdefault(variant.name, variant) != variant:
                raise GridError(f"variant {variant.name!r}: given twice with different settings; name one of them anew")
    return list(found.values())


def _variant(text: str) -> Variant:
    if text == FARM or text in HEADS:
        return Variant(text, {"arch": text})
    if text in ABLATIONS:
        return Variant(text, {"arch": FARM, **ABLATIONS[text]})
    name, colon, pairs = text.partition(":")
    if "=" not in text:
        known = ", ".join([*SETS, FARM, *HEADS, *ABLATIONS])
        raise GridError(f"variant {text!r}: unknown; known: {known}; or write name:key=value,key=value")
    if not _NAME.fullmatch(name):
        raise GridError(f"variant {name!r}: it names a folder; use letters, digits and _ . = , + -")
    if colon and (name in SETS or name == FARM or name in HEADS or name in ABLATIONS):
        raise GridError(f"variant {name!r}: the name is taken; give these settings another one")
    settings = parse_settings((pairs if colon else text).split(","))
    if "seed" in settings:
        raise GridError(f"variant {name!r}: the seed is not a variant's; give the number of seeds")
    return Variant(name, {"arch": FARM, **settings})
