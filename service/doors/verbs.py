"""`farm keys`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, cast

import typer
from pydantic import ValidationError

keys = typer.Typer(help="API keys of the service.", no_args_is_help=True)


@keys.callback()
def _keys() -> None:
    """API keys of the service."""


@keys.command()
def new(
    scopes: Annotated[str, typer.Option(help="Of rank, events, explain and admin; several by comma.")],
    name: Annotated[str, typer.Option(help="Whose it is.")] = "",
    limit: Annotated[int | None, typer.Option(min=1, help="Requests at one time, of one worker.")] = None,
    expires: Annotated[datetime | None, typer.Option(help="When the key ends, UTC.")] = None,
    file: Annotated[Path | None, typer.Option(help="Add it to this file of keys, and print only the key.")] = None,
) -> None:
    """Make a key: print it, which is never done again, and the line for the file FARM_API_KEYS_FILE.

    Example: `farm keys new --scopes rank,events --name shop --file keys.jsonl`
    """
    from service.doors.keys import Scope, new_key
    from service.doors.ring import add_to_file

    until = None if expires is None else expires.replace(tzinfo=UTC)
    if until is not None and until <= datetime.now(UTC):
        raise typer.BadParameter(f"{until:%Y-%m-%d %H:%M} UTC has passed", param_hint="--expires")
    try:
        key, stored = new_key(cast(list[Scope], scopes.split(",")), name, limit, until)
    except ValidationError as error:
        raise typer.BadParameter(error.errors()[0]["msg"], param_hint=f"--{error.errors()[0]['loc'][0]}") from None
    if file is None:
        print(key, stored.line(), sep="\n")
        return
    try:
        add_to_file(file, stored)
    except OSError as error:
        raise typer.BadParameter(f"{file} cannot be written: {error.strerror}", param_hint="--file") from None
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--file") from None
    print(key)
