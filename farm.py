"""The one command line: `farm <verb>`.  Each verb imports its room only when called.

Every option `--some-option` can also be set by the environment variable FARM_SOME_OPTION.
"""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import date, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup, TyperOption

app = typer.Typer(
    name="farm",
    help="FARM ranker: train FARM from interaction logs, export it, serve it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
)
bench = typer.Typer(help="Measure, print JSON with claims, exit 1 when a claim does not hold.", no_args_is_help=True)
app.add_typer(bench, name="bench")


class Source(StrEnum):
    """Where logs come from."""

    simulated = "simulated"
    kuairand = "kuairand"


class OnError(StrEnum):
    """What to do with a corrupt log row."""

    stop = "stop"
    skip = "skip"


class Arch(StrEnum):
    """Architectures."""

    farm = "farm"
    ple = "ple"


class ProviderName(StrEnum):
    """Where the towers run."""

    cpu = "cpu"
    cuda = "cuda"


Data = Annotated[Path, typer.Option(help="PREPARED folder, made by `farm prepare`.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write the figures to this file too.")]
StoreUrl = Annotated[str, typer.Option(help="Feature store, such as lmdb:///var/lib/farm/store.")]


@app.command()
def simulate(
    out: Annotated[Path, typer.Option(help="Folder for the logs.")],
    users: Annotated[int, typer.Option(min=1)] = 3000,
    days: Annotated[int, typer.Option(min=3, help="Days of logs.")] = 8,
    seed: int = 0,
) -> None:
    """Write simulated logs in the project's Parquet format.

    Example: `farm simulate --out logs --users 3000 --days 8`
    """
    from model.datasets.simulator import simulate as run

    run(out, users=users, days=days, seed=seed, progress=_say)
    _say(f"logs in {out}")


@app.command()
def prepare(
    source: Source,
    data: Annotated[Path, typer.Option(help="Folder with the logs, or its parent.")],
    out: Annotated[Path, typer.Option(help="PREPARED folder to write.")],
    test_from: Annotated[
        datetime, typer.Option(formats=["%Y-%m-%d"], help="First test day; the day before validates.")
    ],
    on_error: Annotated[OnError, typer.Option(help="A corrupt row: stop, or skip and count it.")] = OnError.stop,
) -> None:
    """Turn logs into flat columns of events and samples.

    Example: `farm prepare kuairand --data KuaiRand-Pure --out prepared --test-from 2022-05-05`
    """
    from model.datasets.kuairand import prepare_kuairand
    from model.datasets.simulated import prepare_simulated

    run = prepare_kuairand if source is Source.kuairand else prepare_simulated
    prepared = run(data, out, _day(test_from), on_error=on_error.value, progress=_say)
    for name, count in prepared.info.counts.items():
        _say(f"{name.replace('_', ' ')}: {count:,}")
    for split, (start, stop) in prepared.info.splits.items():
        _say(f"{split} samples: {stop - start:,}")
    for note in prepared.info.notes:
        _say(f"note: {note}")
    _say(f"prepared in {out}")


@app.command()
def train(
    data: Data,
    out: Annotated[Path, typer.Option(help="RUN folder to write; an unfinished run of the same settings goes on.")],
    arch: Arch = Arch.farm,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="At most; the source's recommendation if not given.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="key=value", help="Any other setting.")] = None,
) -> None:
    """Train FARM or its base model; the validation day chooses the epoch.

    Example: `farm train --data prepared --out run --set cutoff=3 --set fuse=false`
    """
    from model.config import parse_settings
    from model.datasets.prepared import Prepared
    from model.train import train as run

    chosen: dict[str, Any] = {**parse_settings(settings or []), "arch": arch.value, "seed": seed}
    if epochs is not None:
        chosen["epochs"] = epochs
    result = run(Prepared.open(data), out, chosen)
    _say(f"best epoch {result.best_epoch} of {len(result.epochs)}; run in {out}")


@app.command()
def evaluate(
    run: Annotated[Path, typer.Option(help="RUN folder, made by `farm train`.")], data: Data, json: Json = None
) -> None:
    """AUC, UAUC, GAUC of a run on the test days, per task.

    Example: `farm evaluate --run run --data prepared --json metrics.json`
    """
    from model.datasets.prepared import Prepared
    from model.evaluate import as_json, measure, predict, print_metrics
    from model.train import load_model, require_view

    prepared = Prepared.open(data)
    record, model = load_model(run)
    require_view(record, prepared)
    rows = prepared.rows("test")
    metrics = measure(prepared, rows, predict(model, prepared, rows))
    print_metrics({str(record.settings["arch"]): metrics}, f"{prepared.info.source}, from {prepared.info.test_from}")
    _write_json(json, as_json(metrics))


@app.command()
def export(
    run: Annotated[Path, typer.Option(help="RUN folder.")],
    out: Annotated[Path, typer.Option(help="ARTIFACT folder to write.")],
) -> None:
    """Write the artifact that serving loads; refused when ONNX Runtime and PyTorch differ by more than 1e-5.

    Example: `farm export --run run --out artifact`
    """
    from model.export import export_run

    artifact = export_run(run, out)
    _say(f"model {artifact.version} in {out}")


@app.command()
def materialize(data: Data, store: StoreUrl) -> None:
    """Load histories and attributes into a feature store.

    Example: `farm materialize --data prepared --store lmdb:///var/lib/farm/store`
    """
    from model.datasets.prepared import Prepared
    from model.materialize import materialize as run

    done = asyncio.run(run(Prepared.open(data), store, lambda n, total: _say(f"{n:,} of {total:,} users")))
    _say(f"{done.users:,} users, {sum(done.events.values()):,} events, {done.lives:,} author records in {store}")


@app.command()
def serve(
    artifact: Annotated[Path, typer.Option(help="ARTIFACT folder, made by `farm export`.")],
    store: StoreUrl,
    host: str = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8080,
    workers: Annotated[int, typer.Option(min=1, help="Processes on the one port.")] = 1,
    provider: Annotated[
        ProviderName, typer.Option(help="Where the towers run; never another one silently.")
    ] = ProviderName.cpu,
) -> None:
    """Serve `POST /rank`.

    Example: `farm serve --artifact artifact --store lmdb:///var/lib/farm/store --workers 2`
    """
    from service.server import serve as run
    from service.settings import Settings

    settings = Settings(artifact=artifact, store=store, host=host, port=port, workers=workers, provider=provider.value)
    raise typer.Exit(run(settings))


@app.command()
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

    now_ms = None if now is None else _iso_ms(now)
    rank_table(url, user, candidates.split(","), page=page, now_ms=now_ms, top_k=top_k)


@bench.command("engine")
def bench_engine(
    artifact: Annotated[Path | None, typer.Option(help="Default: an untrained FARM of the default view.")] = None,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    candidates: Annotated[str, typer.Option(help="Candidate counts.")] = "1,50,200,500",
    device: Annotated[ProviderName, typer.Option(help="Where the towers run.")] = ProviderName.cpu,
    json: Json = None,
    quick: Annotated[bool, typer.Option(help="Under a minute.")] = False,
) -> None:
    """Time of both towers; the user once against the history tiled per candidate.

    Example: `farm bench engine --artifact artifact --json engine.json`
    """
    from loadtest.bench.engine import run

    counts = [_count(text) for text in candidates.split(",")]
    _finish(run(artifact, threads, counts, device.value, quick), json)


@bench.command("quality")
def bench_quality(
    data: Data,
    seeds: Annotated[int, typer.Option(min=1)] = 5,
    json: Json = None,
    quick: Annotated[bool, typer.Option(help="One seed, one epoch: for a look, its claims say little.")] = False,
) -> None:
    """FARM, its base model and two LightGBM models on the test days, with intervals.

    Example: `farm bench quality --data prepared --seeds 5 --json quality.json`
    """
    from loadtest.bench.quality import run

    _finish(run(data, seeds, quick), json)


def _finish(report: dict[str, Any], json: Path | None) -> None:
    """Print and write a bench's report; exit 1 when a claim does not hold."""
    _write_json(json, report)
    import json as json_module

    print(json_module.dumps(report, indent=1))
    if not all(claim["holds"] for claim in report["claims"]):
        raise typer.Exit(1)


def _write_json(path: Path | None, record: dict[str, Any]) -> None:
    if path is not None:
        import json

        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n")


def _day(moment: datetime) -> date:
    return moment.date()


def _iso_ms(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"--now {text!r}: write an ISO time, such as 2022-05-06T20:00:00+08:00") from None
    return int(moment.timestamp() * 1000)


def _count(text: str) -> int:
    if not text.strip().isdigit() or int(text) < 1:
        raise typer.BadParameter(f"--candidates {text!r}: positive integers, separated by commas")
    return int(text)


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _name_environment(command: Any) -> None:
    """Give every option its environment variable."""
    if isinstance(command, TyperGroup):
        for child in command.commands.values():
            _name_environment(child)
    for parameter in command.params:
        if isinstance(parameter, TyperOption) and parameter.envvar is None and parameter.name != "help":
            longest = max(parameter.opts, key=len)
            parameter.envvar = "FARM_" + longest.lstrip("-").replace("-", "_").upper()


def main() -> None:
    """Run a verb.  An error that its user can mend is one line on stderr and exit status 1 (FARM_DEBUG=1: a trace)."""
    command = typer.main.get_command(app)
    _name_environment(command)
    try:
        command(prog_name="farm")
    except Exception as error:
        if os.environ.get("FARM_DEBUG") or not isinstance(error, _expected()):
            raise
        print(f"farm: {_one_line(error)}", file=sys.stderr)
        sys.exit(1)


def _expected() -> tuple[type[Exception], ...]:
    """What bad input, a bad folder or a store raise.  The rooms' own errors are ValueErrors or named here."""
    from feature_store.store import StoreError

    engine = sys.modules.get("model.artifact.engine")
    return (ValueError, OSError, StoreError, *([engine.EngineError] if engine else []))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    main()
