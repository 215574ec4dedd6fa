"""`farm serve` and `farm rank`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from feature_store.verbs import StoreUrl, iso_ms


def serve(
    store: StoreUrl,
    artifact: Annotated[Path | None, typer.Option(help="ARTIFACT folder, made by `farm export`.")] = None,
    models: Annotated[
        str | None, typer.Option(help="Artifact store whose pointer says what serves, instead of --artifact.")
    ] = None,
    host: str = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8080,
    workers: Annotated[int, typer.Option(min=1, help="Processes on the one port.")] = 1,
    provider: Annotated[
        str, typer.Option(help="Where the towers run: cpu, cuda, tensorrt; several, by comma, in order of fallback.")
    ] = "cpu",
    admin_host: Annotated[str, typer.Option(help="Of metrics and administration.")] = "127.0.0.1",
    admin_port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8081,
    open_: Annotated[
        bool, typer.Option("--open", help="Serve without API keys where other machines reach it.")
    ] = False,
) -> None:
    """Serve `POST /rank`.

    Example: `farm serve --artifact artifact --store lmdb:///var/lib/farm/store --workers 2`
    """
    from service.lifecycle.settings import read_lifecycle
    from service.server import serve as run
    from service.settings import read_settings

    given = {"artifact": artifact, "store": store, "host": host, "port": port, "workers": workers, "provider": provider}
    given |= {"admin_host": admin_host, "admin_port": admin_port}
    if open_:  # else the environment says it
        given["open"] = True
    settings, lifecycle = read_settings(**given), read_lifecycle(**({"models": models} if models else {}))
    if settings.artifact is None and lifecycle.models is None:
        raise ValueError("give --artifact FOLDER, or --models URL of an artifact store")
    raise typer.Exit(run(settings, lifecycle))


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

    A service with keys wants one of scope rank in the environment's FARM_API_KEY.

    Example: `farm rank --url http://127.0.0.1:8080 --user 7 --candidates 11,12,13`
    """
    from service.show import rank_table

    now_ms = None if now is None else iso_ms(now, "--now")
    rank_table(url, user, candidates.split(","), page=page, now_ms=now_ms, top_k=top_k)
