"""`farm serve` and `farm rank`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from feature_store.verbs import StoreUrl, iso_ms


def serve(
    artifact: Annotated[Path, typer.Option(help="ARTIFACT folder, made by `farm export`.")],
    store: StoreUrl,
    host: str = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8080,
    workers: Annotated[int, typer.Option(min=1, help="Processes on the one port.")] = 1,
    provider: Annotated[
        str, typer.Option(help="Where the towers run: cpu, cuda, tensorrt; several, by comma, in order of fallback.")
    ] = "cpu",
    admin_host: Annotated[str, typer.Option(help="Of metrics and administration.")] = "127.0.0.1",
    admin_port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8081,
) -> None:
    """Serve `POST /rank`.

    Example: `farm serve --artifact artifact --store lmdb:///var/lib/farm/store --workers 2`
    """
    from service.server import serve as run
    from service.settings import read_settings

    given = {"artifact": artifact, "store": store, "host": host, "port": port, "workers": workers}
    raise typer.Exit(run(read_settings(**given, provider=provider, admin_host=admin_host, admin_port=admin_port)))


def rank(
    url: Annotated[str, typer.Option(help="Of the service, such as http://127.0.0.1:8080.")],
    user: Annotated[str, typer.Option(help="User id.")],
    candidates: Annotated[str, typer.Option(help="Author ids, or author:live, separated by commas.")],
    page: Annotated[int | None, typer.Option(help="Where the ranking will be shown.")] = None,
    now: Annotated[
        str | None, typer.Option(help="ISO time of the request, for old logs; default the server's clock.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(min=1)] = None,
) -> None:
    """Ask a running service for a ranking and print it.

    Example: `farm rank --url http://127.0.0.1:8080 --user 7 --candidates 11,12,13`
    """
    from service.show import rank_table

    now_ms = None if now is None else iso_ms(now, "--now")
    rank_table(url, user, candidates.split(","), page=page, now_ms=now_ms, top_k=top_k)
