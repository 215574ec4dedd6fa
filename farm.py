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
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup, TyperOption

from feature_store.verbs import StoreUrl, ingest, iso_ms
from feature_store.verbs import store as store_verbs
from loadtest.bench.verbs import bench
from model.registry.verbs import models
from service.doors.verbs import keys
from service.unknown_names import unknown_names
from service.verbs import rank, serve

app = typer.Typer(
    name="farm",
    help="FARM ranker: train FARM from interaction logs, export it, serve it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
)
app.add_typer(bench, name="bench")
app.add_typer(keys, name="keys")
app.add_typer(models, name="models")
app.add_typer(store_verbs, name="store")
for _verb in (ingest, serve, rank):
    app.command()(_verb)


class Source(StrEnum):
    """Where logs come from."""

    logs = "logs"
    simulated = "simulated"
    kuairand = "kuairand"
    kuailive_m3 = "kuailive-m3"


class OnError(StrEnum):
    """What to do with a corrupt log row."""

    stop = "stop"
    skip = "skip"


class PrecisionName(StrEnum):
    """In which numbers the candidate tower, or with fp16 both towers, compute."""

    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"


class Arch(StrEnum):
    """FARM, or a base model by the name of its multi-task head."""

    farm = "farm"
    shared_bottom = "shared_bottom"
    mmoe = "mmoe"
    cgc = "cgc"
    ple = "ple"
    adatt = "adatt"


Data = Annotated[Path, typer.Option(help="PREPARED folder, made by `farm prepare`.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write the figures to this file too.")]


@app.command()
def simulate(
    out: Annotated[Path, typer.Option(help="Folder for the logs.")],
    users: Annotated[int, typer.Option(min=1)] = 3000,
    days: Annotated[int, typer.Option(min=3, help="Days of logs.")] = 8,
    seed: int = 0,
    without: Annotated[
        list[str] | None, typer.Option(help="A planted structure to leave out, such as memory; may be repeated.")
    ] = None,
    null: Annotated[bool, typer.Option("--null", help="Plant nothing: every label is a coin flip.")] = False,
) -> None:
    """Write simulated logs in the project's Parquet format, with the true probability of every label.

    Example: `farm simulate --out logs --users 3000 --days 8`
    """
    from model.datasets.simulator import simulate as run
    from model.datasets.world import Planted

    if null and without:
        raise typer.BadParameter("nothing is planted that could be left out; give one of the two", param_hint="--null")
    planted = Planted.nothing() if null else Planted().without(*(without or []))
    run(out, users=users, days=days, seed=seed, planted=planted, progress=_say)
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
    content: Annotated[
        bool, typer.Option("--content", help="kuailive-m3: codes of the rooms' embeddings as fields of a candidate.")
    ] = False,
) -> None:
    """Turn logs into flat columns of events and samples.  `logs` is the project's own format (docs/data.md).

    Example: `farm prepare kuairand --data KuaiRand-Pure --out prepared --test-from 2022-05-05`
    """
    from model.datasets.kuailive import prepare_kuailive
    from model.datasets.kuairand import prepare_kuairand
    from model.datasets.logs import prepare_logs

    if content and source is not Source.kuailive_m3:
        raise typer.BadParameter("only kuailive-m3 has room embeddings", param_hint="--content")
    runs: dict[Source, Any] = {Source.kuairand: prepare_kuairand, Source.kuailive_m3: prepare_kuailive}
    extra: dict[str, Any] = {"content": True} if content else {}
    prepared = runs.get(source, prepare_logs)(
        data, out, _day(test_from), on_error=on_error.value, progress=_say, **extra
    )
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
    out: Annotated[
        Path, typer.Option(help="RUN folder to write; an unfinished run of the same settings and data goes on.")
    ],
    arch: Arch = Arch.farm,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="At most; the source's recommendation if not given.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="key=value", help="Any other setting.")] = None,
) -> None:
    """Train FARM or a base model; the validation day chooses the epoch and calibrates.

    Several processes: `torchrun --nproc-per-node 2 -m farm train --data prepared --out run`.

    Example: `farm train --data prepared --out run --set cutoff=3 --set fuse=false`
    """
    from model.config import parse_settings
    from model.datasets.prepared import Prepared
    from model.train import refuse_other
    from model.train import train as run

    chosen: dict[str, Any] = parse_settings(settings or [])
    for name in ("arch", "seed"):
        if name in chosen:
            raise typer.BadParameter(f"{name} has an option of its own: --{name} {chosen[name]}", param_hint="--set")
    chosen |= {"arch": arch.value, "seed": seed}
    if epochs is not None:
        chosen["epochs"] = epochs
    prepared = Prepared.open(data)
    refuse_other(out, chosen, prepared)
    result = run(prepared, out, chosen)
    if os.environ.get("RANK", "0") == "0":
        _say(f"best epoch {result.best_epoch} of {len(result.epochs)}; run in {out}")


@app.command()
def evaluate(
    run: Annotated[Path, typer.Option(help="RUN folder, made by `farm train`.")],
    data: Data,
    degraded: Annotated[bool, typer.Option("--degraded", help="Also the AUC of every degraded answer.")] = False,
    json: Json = None,
) -> None:
    """AUC, UAUC, GAUC, predicted/observed and normalised entropy of a run on the test days, per task, calibrated.

    Example: `farm evaluate --run run --data prepared --json metrics.json`
    """
    from model.calibrate import load_calibration
    from model.datasets.prepared import Prepared
    from model.evaluate import as_json, calibration_effect, measure, predict, print_metrics
    from model.train import load_model, require_view

    prepared = Prepared.open(data)
    record, model = load_model(run)
    require_view(record, prepared)
    rows = prepared.rows("test")
    raw = predict(model, prepared, rows)
    calibrated = load_calibration(run, prepared.view.tasks).apply(raw)
    metrics = measure(prepared, rows, calibrated)
    print_metrics({str(record.settings["arch"]): metrics}, f"{prepared.info.source}, from {prepared.info.test_from}")
    figures = {**as_json(metrics), "calibration": calibration_effect(prepared, rows, raw, calibrated)}
    if degraded:
        from model.report.degraded import by_condition, print_conditions

        figures["degraded"] = by_condition(model, prepared, rows)
        print_conditions(figures["degraded"], "Degraded answers (not calibrated)")
    _write_json(json, figures)


@app.command()
def study(
    data: Data,
    out: Annotated[Path, typer.Option(help="STUDY folder; runs that are there are not made again.")],
    variant: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A set (main, ablations, heads, cutoff, lambda, spectrum, align), a variant, key=value,... or "
            "name:key=value,...; default main.",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=2, help="Runs of each variant.")] = 5,
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at once; one per core if not given.")] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="At most; the source's recommendation if not given.")
    ] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="key=value", help="Of all variants.")] = None,
    match: Annotated[bool, typer.Option(help="Give every variant as many dense parameters as FARM.")] = True,
    json: Json = None,
) -> None:
    """Train variants with several seeds and compare them with intervals; exit 1 when a claim does not hold.

    Example: `farm study --data prepared --out study --variant main --seeds 5`
    """
    from model.config import parse_settings
    from model.study import run

    found = run(data, out, variant or ["main"], seeds, jobs, epochs, parse_settings(settings or []), match, _say)
    _write_json(json, found)
    for claim in found["claims"]:
        _say(f"{'holds' if claim['holds'] else 'does not hold'}: {claim['claim']}: {claim['value']}")
    if not all(claim["holds"] or claim.get("goal") for claim in found["claims"]):
        raise typer.Exit(1)


@app.command()
def report(
    study: Annotated[Path, typer.Option(help="STUDY folder, made by `farm study`.")],
    data: Data,
    out: Annotated[Path, typer.Option(help="HTML file to write; its figures go beside it as .json.")],
) -> None:
    """Write a study's evaluation as one HTML file: tables and figures of the paper, on this data.

    Example: `farm report --study study --data prepared --out report.html`
    """
    from model.report import write_report

    _say(f"report in {write_report(study, data, out, _say)}")


@app.command()
def export(
    run: Annotated[Path, typer.Option(help="RUN folder.")],
    out: Annotated[Path, typer.Option(help="ARTIFACT folder to write.")],
    precision: Annotated[
        PrecisionName, typer.Option(help="fp16 is for CUDA, int8 for CPUs with VNNI; both need --data.")
    ] = PrecisionName.fp32,
    data: Annotated[
        Path | None, typer.Option(help="PREPARED folder, on whose validation day fp16 and int8 are compared with fp32.")
    ] = None,
    max_loss: Annotated[
        float, typer.Option(min=0, help="Points (hundredths) of AUC, UAUC and GAUC that fp16 and int8 may lose.")
    ] = 0.05,
) -> None:
    """Write the artifact that serving loads; refused when ONNX Runtime and PyTorch differ by more than 1e-5.

    Example: `farm export --run run --out artifact`
    Example: `farm export --run run --out artifact --precision int8 --data prepared`
    """
    if precision is PrecisionName.fp32:
        from model.export import export_run

        artifact = export_run(run, out)
    else:
        from model.datasets.prepared import Prepared
        from model.export.checked import export_checked
        from model.export.gate import Limits

        if data is None:
            raise ValueError(f"--precision {precision.value}: needs --data PREPARED, to compare its quality with fp32")
        limits = Limits(max_loss_points=max_loss)
        wanted: Literal["fp16", "int8"] = "int8" if precision is PrecisionName.int8 else "fp16"
        artifact, report = export_checked(run, out, wanted, Prepared.open(data), limits)
        _say(report.summary())
    _say(f"model {artifact.version} in {out}")


@app.command()
def materialize(
    data: Data,
    store: StoreUrl,
    as_of: Annotated[
        str | None,
        typer.Option(help="ISO time: load the events known and the rooms asked for by then; default all there is."),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    allow_gap: Annotated[
        bool, typer.Option("--allow-gap", help="Redis: load although the log of live events begins after the logs end.")
    ] = False,
    keep_previous: Annotated[
        bool, typer.Option("--keep-previous", help="Redis: do not delete the generation that was read before.")
    ] = False,
) -> None:
    """Load histories and attributes into a feature store.  With Redis, readers are switched to the new data at the end.

    Example: `farm materialize --data prepared --store lmdb:///var/lib/farm/store`
    """
    from model.datasets.prepared import Prepared
    from model.materialize import Options
    from model.materialize import materialize as run

    moment = None if as_of is None else iso_ms(as_of, "--as-of")
    options = Options(moment, jobs, allow_gap, keep_previous)
    done = asyncio.run(
        run(Prepared.open(data), store, options, lambda n, total: _say(f"{n:,} of {total:,} steps"), _say)
    )
    _say(f"{done.users:,} users, {sum(done.events.values()):,} events, {done.lives:,} author records in {store}")
    rate = done.users / done.ready_s
    _say(f"{done.verified:,} users read back, {done.replayed:,} live events replayed; {rate:,.0f} users/s")


def _write_json(path: Path | None, record: dict[str, Any]) -> None:
    if path is not None:
        import json

        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n")


def _day(moment: datetime) -> date:
    return moment.date()


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _name_environment(command: Any) -> set[str]:
    """Give every option its environment variable; the names of all."""
    names = set[str]()
    if isinstance(command, TyperGroup):
        for child in command.commands.values():
            names |= _name_environment(child)
    for parameter in command.params:
        if isinstance(parameter, TyperOption) and parameter.envvar is None and parameter.name != "help":
            longest = max(parameter.opts, key=len)
            parameter.envvar = "FARM_" + longest.lstrip("-").replace("-", "_").upper()
        if isinstance(parameter, TyperOption):
            given = parameter.envvar or ()
            names |= {given} if isinstance(given, str) else set(given)
    return names


def main() -> None:
    """Run a verb.  An error that its user can mend is one line on stderr and exit status 1 (FARM_DEBUG=1: a trace)."""
    command = typer.main.get_command(app)
    for line in unknown_names(os.environ, _name_environment(command)):
        _say(f"farm: {line}")
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
