"""The parts of a bench: chosen by name, measured one after the other in one place."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Part:
    """What is measured together."""

    measure: Callable[..., dict[str, Any]]
    claims: Callable[[dict[str, Any]], list[dict[str, Any]]]


class UnknownPartError(ValueError):
    """The bench has nothing of this name."""


def choose(
    only: str | None, names: Iterable[str], default: Iterable[str] | None = None, kind: str = "part"
) -> list[str]:
    """The one of a name, or the default, which is all.

    kind: what the names are called in the error
    UnknownPartError when there is none of that name.
    """
    known = list(names)
    if only is None:
        return known if default is None else list(default)
    if only not in known:
        raise UnknownPartError(f"no {kind} {only!r}; there are {', '.join(known)}")
    return [only]


def measure_parts(
    parts: Mapping[str, Part], names: Iterable[str], *place: object
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Figures by part, and claims on them.  place: what each part is measured in"""
    results, claims = {}, []
    for name in names:
        start = time.monotonic()
        found = parts[name].measure(*place)
        results[name] = {**found, "took_s": time.monotonic() - start}
        claims += parts[name].claims(found)
        print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    return results, claims
