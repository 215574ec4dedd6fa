"""A ranking as a table in the terminal: `farm rank`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from service.client import RankClient
from service.contract import RankAnswer

_PIPE_WIDTH = 200  # columns; a file has no width that ids should be cut to


def rank_table(
    url: str,
    user: str,
    candidates: Sequence[str],
    page: int | None = None,
    now_ms: int | None = None,
    top_k: int | None = None,
) -> None:
    """Ask the service at `url` and print its answer.

    candidates: "author" or "author:live".  RankError when there is no answer.
    """
    with RankClient(url) as client:
        answer = client.rank(user, [_candidate(text) for text in candidates], page, top_k, now_ms)
    show_answer(answer, Console() if sys.stdout.isatty() else Console(width=_PIPE_WIDTH))


def show_answer(answer: RankAnswer, console: Console) -> None:
    """Print a ranking, best first, and how it was made."""
    tasks = list(answer.ranking[0].xtr)
    table = Table(title=f"model {answer.model_version}", title_justify="left")
    for name in ("", "author", "live room", "score", *tasks):
        table.add_column(name, justify="right", overflow="fold")
    for place, ranked in enumerate(answer.ranking, 1):
        live = "-" if ranked.live_id is None else str(ranked.live_id)
        values = [f"{ranked.xtr[task]:.5f}" for task in tasks]
        table.add_row(str(place), str(ranked.author_id), live, f"{ranked.score:.4f}", *values)
    console.print(table)
    timing = ", ".join(f"{stage} {value:.2f}" for stage, value in answer.timing_ms)
    console.print(f"ms: {timing}", highlight=False)
    if answer.degraded:
        console.print(f"degraded: {', '.join(answer.degraded)}", style="yellow", highlight=False)


def _candidate(text: str) -> str | dict[str, int | str | None]:
    author, separator, live = text.strip().partition(":")
    return {"author_id": author, "live_id": live} if separator else author
