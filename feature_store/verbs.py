"""`farm store` and `farm ingest`: look at a feature store, back it up, erase a user, and bring events in."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer

StoreUrl = Annotated[str, typer.Option(help="Feature store, such as lmdb:///var/lib/farm/store or redis://host:6379.")]
UserId = Annotated[str, typer.Option("--user", help="User id.")]

store = typer.Typer(
    name="store", help="What a feature store holds: look, back up, restore, erase.", no_args_is_help=True
)


class OnError(StrEnum):
    """What to do with an event that cannot be read."""

    stop = "stop"
    skip = "skip"


@store.command()
def stats(url: Annotated[str, typer.Option("--store", help="Feature store.")]) -> None:
    """Print how much a store holds, as JSON.

    Example: `farm store stats --store redis://127.0.0.1:6379`
    """
    from feature_store.administration import stats as run

    _print_json(asyncio.run(run(url)))


@store.command()
def get(
    url: Annotated[str, typer.Option("--store", help="Feature store.")],
    user: Annotated[str | None, typer.Option(help="User id.")] = None,
    author: Annotated[str | None, typer.Option(help="Author id.")] = None,
) -> None:
    """Print what is stored of a user or of an author, as JSON; null is a value that is not known.

    Example: `farm store get --store lmdb:///var/lib/farm/store --user 17`
    """
    from feature_store.administration import author_as_json, user_as_json

    if (user is None) == (author is None):
        raise typer.BadParameter("give one of the two", param_hint="--user / --author")
    found = asyncio.run(user_as_json(url, user) if user is not None else author_as_json(url, str(author)))
    _print_json(found)


@store.command("delete-user")
def delete_user(url: Annotated[str, typer.Option("--store", help="Feature store.")], user: UserId) -> None:
    """Erase a user for good; events of theirs that are on their way are dropped when they come.

    Example: `farm store delete-user --store redis://127.0.0.1:6379 --user 17`
    """
    from feature_store.administration import erase

    erased = asyncio.run(erase(url, user))
    known = "erased" if erased.known else "not known"
    _say(
        f"user {user}: {known}; {erased.dead_letters} dead letters removed; a tombstone drops what is still on its way"
    )


@store.command()
def backup(
    url: Annotated[str, typer.Option("--store", help="Feature store.")],
    out: Annotated[Path, typer.Option(help="File to write; it must not be there.")],
) -> None:
    """Write everything a store holds to one file, which any backend can restore.

    Example: `farm store backup --store redis://127.0.0.1:6379 --out store-20260105.farm`
    """
    from feature_store.administration import backup as run

    done = asyncio.run(run(url, out, _say))
    _say(f"{done.users:,} users, {done.authors:,} authors, {done.erased:,} tombstones in {out}")


@store.command()
def restore(
    url: Annotated[str, typer.Option("--store", help="Feature store; made when there is none.")],
    source: Annotated[Path, typer.Option("--from", help="File made by `farm store backup`.")],
) -> None:
    """Merge a backup into a store; whoever was erased stays so.

    Example: `farm store restore --store lmdb:///var/lib/farm/store --from store-20260105.farm`
    """
    from feature_store.administration import restore as run

    done = asyncio.run(run(url, source, _say))
    _say(f"{done.users:,} users, {done.authors:,} authors, {done.erased:,} tombstones from {source} in {url}")


def ingest(
    url: Annotated[str, typer.Option("--store", help="Feature store.")],
    source: Annotated[
        str | None, typer.Option("--from", help="JSON lines of events, as in POST /events; - is standard input.")
    ] = None,
    on_error: Annotated[
        OnError, typer.Option(help="An event that cannot be read: stop, or skip and count it.")
    ] = OnError.stop,
    worker: Annotated[
        bool, typer.Option("--worker", help="Merge the events of the log into histories, until stopped.")
    ] = False,
    metrics_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Of the worker: serve Prometheus metrics on this port."),
    ] = None,
    metrics_host: Annotated[
        str, typer.Option(help="With --metrics-port: the address that metrics are served on.")
    ] = "127.0.0.1",
    dead_letters: Annotated[
        bool, typer.Option("--dead-letters", help="List the events that could not be merged.")
    ] = False,
    replay: Annotated[
        str | None, typer.Option(metavar="ID|all", help="With --dead-letters: put them back into the log.")
    ] = None,
    discard: Annotated[
        str | None, typer.Option(metavar="ID|all", help="With --dead-letters: remove them for good.")
    ] = None,
) -> None:
    """Bring events in.  With Redis they go to a durable log that workers merge; with LMDB they are merged at once.

    Example: `farm ingest --store redis://127.0.0.1:6379 --from events.jsonl`

    Example: `farm ingest --store redis://127.0.0.1:6379 --worker --metrics-port 9101`
    """
    import feature_store.events.ingest as room

    if [source is not None, worker, dead_letters].count(True) != 1:
        raise typer.BadParameter("give one of the three", param_hint="--from / --worker / --dead-letters")
    if (replay or discard) and not dead_letters:
        raise typer.BadParameter("only with --dead-letters", param_hint="--replay / --discard")
    if metrics_port is not None and not worker:
        raise typer.BadParameter("only with --worker", param_hint="--metrics-port")
    if source is not None:
        with _opened(source) as file:
            done = asyncio.run(room.ingest(url, file, skip=on_error is OnError.skip, progress=_say))
        _say(f"{done.accepted:,} events accepted, {done.skipped:,} skipped")
    elif worker:
        asyncio.run(room.work(url, metrics_host, metrics_port, _say))
    else:
        _print_json(asyncio.run(room.dead_letters(url, replay=replay, discard=discard)))


@contextmanager
def _opened(source: str) -> Iterator[BinaryIO]:
    if source == "-":
        yield sys.stdin.buffer
    else:
        with open(source, "rb") as file:
            yield file


def _print_json(value: Any) -> None:
    import orjson

    typer.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())


def iso_ms(text: str, option: str) -> int:
    """An ISO time as ms since 1970; BadParameter names the option."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{option} {text!r}: write an ISO time, such as 2022-05-06T20:00:00+08:00") from None
    return int(moment.timestamp() * 1000)


def _say(text: str) -> None:
    typer.echo(text, err=True)
