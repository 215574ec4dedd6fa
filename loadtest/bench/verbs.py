"""The verbs of `farm bench`.  Each imports what it measures only when called."""

from __future__ import annotations

import json as json_module
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

bench = typer.Typer(help="Measure, print JSON with claims, exit 1 when a claim does not hold.", no_args_is_help=True)


class ProviderName(StrEnum):
    """Where the towers run."""

    cpu = "cpu"
    cuda = "cuda"


Data = Annotated[Path, typer.Option(help="PREPARED folder, made by `farm prepare`.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write the figures to this file too.")]


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


@bench.command("prepare")
def bench_prepare(
    events: Annotated[int, typer.Option(min=10_000, help="To simulate, about.")] = 50_000_000,
    data: Annotated[Path | None, typer.Option(help="Logs in the project's format; default: simulated ones.")] = None,
    json: Json = None,
    quick: Annotated[bool, typer.Option(help="300,000 events.")] = False,
) -> None:
    """Time and peak memory of `farm prepare logs`, in a process of its own on two cores.

    Example: `farm bench prepare --events 50000000 --json prepare.json`
    """
    from loadtest.bench.prepare import run

    _finish(run(events, data, quick), json)


@bench.command("train")
def bench_train(
    data: Annotated[Path | None, typer.Option(help="PREPARED folder; default: a simulated one.")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 5000,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[list[str] | None, typer.Option(help="fp32, tf32 (CUDA), bf16; may be repeated.")] = None,
    steps: Annotated[int, typer.Option(min=1)] = 8,
    json: Json = None,
    quick: Annotated[bool, typer.Option(help="A small data set.")] = False,
) -> None:
    """Samples per second of FARM's training, the wait for data, and the share of matrix products.

    Example: `farm bench train --precision fp32 --precision bf16 --json train.json`
    """
    from loadtest.bench.train import run

    _finish(run(data, batch_size, device, precision or ["fp32", "bf16"], steps, quick), json)


@bench.command("store")
def bench_store(
    json: Json = None,
    quick: Annotated[bool, typer.Option(help="Under a minute; its figures wander.")] = False,
) -> None:
    """Bulk loads, reads, memory, merging and freshness, with LMDB and with a real Valkey on loopback.

    Example: `farm bench store --json store.json`
    """
    from loadtest.bench.store import run

    _finish(run(quick), json)


@bench.command("events")
def bench_events(
    only: Annotated[
        str | None, typer.Option(help="One scenario: worker, master, replica, stall, memory or materialize.")
    ] = None,
    json: Json = None,
    quick: Annotated[bool, typer.Option(help="Shorter traffic and faults.")] = False,
) -> None:
    """Events lost and doubled, and rankings answered, while workers, servers, the network, or memory fail.

    Example: `farm bench events --json events.json`
    """
    from loadtest.bench.events import run

    with _only():
        report = run(only, quick)
    _finish(report, json)


@bench.command("service")
def bench_service(
    artifact: Annotated[Path | None, typer.Option(help="Default: an untrained FARM of the default view.")] = None,
    only: Annotated[
        str | None,
        typer.Option(
            help="One part: generator, saturated, linear, open, mixed, cache, users, workers, hand-over or memory."
        ),
    ] = None,
    json: Json = None,
    quick: Annotated[bool, typer.Option(help="Small and short; its figures wander.")] = False,
) -> None:
    """The service under load, over Redis and LMDB: rates, latencies, CPU per request by stage, workers, memory.

    Example: `farm bench service --json service.json`
    """
    from loadtest.bench.service import run

    with _only():
        report = run(artifact, only, quick)
    _finish(report, json)


@bench.command("faults")
def bench_faults(
    artifact: Annotated[Path | None, typer.Option(help="Default: an untrained FARM of the default view.")] = None,
    only: Annotated[
        str | None,
        typer.Option(
            help="One part: redis, overload, reload, refused, rollback, workers, rolling, kill, poison or slowloris."
        ),
    ] = None,
    json: Json = None,
    quick: Annotated[bool, typer.Option(help="A few parts, small and short; their figures wander.")] = False,
) -> None:
    """What clients see while the store, the load, models and processes go wrong.

    Example: `farm bench faults --only redis --json faults.json`
    """
    from loadtest.bench.faults import run

    with _only():
        report = run(artifact, only, quick)
    _finish(report, json)


@bench.command("soak")
def bench_soak(
    artifact: Annotated[Path | None, typer.Option(help="Default: an untrained FARM of the default view.")] = None,
    minutes: Annotated[int, typer.Option(min=1, help="Of load.")] = 30,
    only: Annotated[str | None, typer.Option(help="One kind of trouble: reloads, redis or none.")] = None,
    json: Json = None,
    quick: Annotated[bool, typer.Option(help="Half a minute; its figures say little.")] = False,
) -> None:
    """Memory, file descriptors and threads under load, with a reload and a restart of Redis every minute.

    Example: `farm bench soak --minutes 30 --json soak.json`
    """
    from loadtest.bench.soak import run

    with _only():
        report = run(artifact, minutes, only, quick)
    _finish(report, json)


@bench.command("fuzz")
def bench_fuzz(
    artifact: Annotated[Path | None, typer.Option(help="Default: an untrained FARM of the default view.")] = None,
    only: Annotated[str | None, typer.Option(help="One part: openapi, bodies or wire.")] = None,
    json: Json = None,
    quick: Annotated[bool, typer.Option(help="A thousand requests.")] = False,
) -> None:
    """Whatever is sent, no answer is an undocumented 5xx, shows a stack trace, or does not come.

    Example: `farm bench fuzz --json fuzz.json`
    """
    from loadtest.bench.fuzz import run

    with _only():
        report = run(artifact, only, quick)
    _finish(report, json)


@bench.command("peers")
def bench_peers(
    artifact: Annotated[Path | None, typer.Option(help="Default: an untrained FARM of the default view.")] = None,
    only: Annotated[
        str | None, typer.Option(help="Some, by comma: fastapi, litserve, bentoml, mosec, ray, ray-haproxy.")
    ] = None,
    environments: Annotated[
        Path, typer.Option(help="Folder of the peers' virtual environments; what is absent is made.")
    ] = Path(".bench-peers"),
    json: Json = None,
    quick: Annotated[bool, typer.Option(help="Few and short blocks; with all peers still minutes.")] = False,
) -> None:
    """The same model, store and answers behind FastAPI, LitServe, BentoML, mosec and Ray Serve, in turn on one core.

    Example: `farm bench peers --only fastapi,mosec --json peers.json`
    """
    from loadtest.bench.peers import run

    with _only():
        report = run(artifact, only, environments, quick)
    _finish(report, json)


@bench.command("load")
def bench_load(
    artifact: Annotated[Path | None, typer.Option(help="Default: an untrained FARM of the default view.")] = None,
    html: Annotated[Path, typer.Option(help="Folder of Locust's reports.")] = Path("build/load"),
    json: Json = None,
    quick: Annotated[bool, typer.Option(help="Under a minute; its figures wander.")] = False,
) -> None:
    """Locust's visitors against one worker: objectives met at 70 % of what saturates it, missed at 120 %.

    Example: `farm bench load --html reports --json load.json`
    """
    from loadtest.bench.load import run

    _finish(run(artifact, html, quick), json)


@bench.command("metrics")
def bench_metrics(
    artifact: Annotated[Path | None, typer.Option(help="Default: an untrained FARM of the default view.")] = None,
    only: Annotated[str | None, typer.Option(help="One part: cost, exact or killed.")] = None,
    json: Json = None,
    quick: Annotated[bool, typer.Option(help="Few and short blocks; its figures wander.")] = False,
) -> None:
    """What metrics and logs cost a request, and whether counters are exact with several workers, also after kill -9.

    Example: `farm bench metrics --json metrics.json`
    """
    from loadtest.bench.metrics import run

    with _only():
        report = run(artifact, only, quick)
    _finish(report, json)


@contextmanager
def _only() -> Iterator[None]:
    """What --only names must exist."""
    from loadtest.bench.parts import UnknownPartError

    try:
        yield
    except UnknownPartError as error:
        raise typer.BadParameter(str(error), param_hint="--only") from None


def _finish(report: dict[str, Any], json: Path | None) -> None:
    """Print and write a bench's report; exit 1 when a claim does not hold."""
    text = json_module.dumps(report, indent=1)
    if json is not None:
        json.parent.mkdir(parents=True, exist_ok=True)
        json.write_text(text + "\n")
    print(text)
    if not all(claim["holds"] for claim in report["claims"]):
        raise typer.Exit(1)


def _count(text: str) -> int:
    if not text.strip().isdigit() or int(text) < 1:
        raise typer.BadParameter(f"--candidates {text!r}: positive integers, separated by commas")
    return int(text)
