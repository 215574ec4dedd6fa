"""The versions of a store as a table in the terminal, and as records."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from model.registry.contents import Stored
from model.registry.pointer import Pointer

_PIPE_WIDTH = 200  # columns; a file has no width that versions should be cut to
_MIB = 1 << 20


def show(pointer: Pointer | None, found: Sequence[Stored]) -> None:
    console = Console() if sys.stdout.isatty() else Console(width=_PIPE_WIDTH)
    table = Table(title=_title(pointer), title_justify="left")
    for name in ("version", "arch", "created", "MiB", "serves", "signed by", "problem"):
        table.add_column(name, justify="right" if name == "MiB" else "left", overflow="fold")
    for one in found:
        created = one.created.strftime("%Y-%m-%d %H:%M") if one.created else "-"
        marks, signers = ", ".join(one.marks), ", ".join(one.signers)
        table.add_row(one.version, one.arch or "-", created, f"{one.bytes / _MIB:.1f}", marks, signers, one.problem)
    console.print(table)


def as_records(pointer: Pointer | None, found: Sequence[Stored]) -> dict[str, Any]:
    """JSON: the pointer and every version."""
    models = [{name: getattr(one, name) for name in Stored.__dataclass_fields__} for one in found]
    return {"pointer": None if pointer is None else pointer.model_dump(mode="json"), "models": models}


def _title(pointer: Pointer | None) -> str:
    if pointer is None:
        return "nothing is active"
    formula = pointer.formula.version if pointer.formula else "default"
    return f"pointer {pointer.number} by {pointer.by}, {pointer.at:%Y-%m-%d %H:%M} UTC, formula {formula}"
