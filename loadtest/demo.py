"""`make demo`: from nothing to a ranking over HTTP, by the same verbs that a user would type.

Simulated logs -> prepared -> FARM and its base model trained and compared on the test day -> FARM exported, its feature
store filled -> served -> one ranking of 200 candidates.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from model.datasets.prepared import Prepared
from service.client import RankClient

CANDIDATES = 200
PORT, ADMIN_PORT = 8080, 8081
START_TIMEOUT_S = 60
TEST_FROM = "2025-01-08"  # the last of the simulator's eight days


def main() -> int:
    """Run the demo; the exit status is that of the verb that failed, or 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for everything it makes")
    parser.add_argument("--once", action="store_true", help="stop after the ranking instead of serving on")
    options = parser.parse_args()
    started = time.monotonic()
    for stop in (signal.SIGINT, signal.SIGTERM):  # also where a shell started it in the background, deaf to Ctrl-C
        signal.signal(stop, signal.default_int_handler)
    try:
        _build(options.out)
        return _serve_and_rank(options.out, options.once, started)
    except subprocess.CalledProcessError as error:
        return int(error.returncode)
    except KeyboardInterrupt:
        return 0


def _build(out: Path) -> None:
    """Everything up to the artifact and the store."""
    _farm("simulate", "--out", out / "logs")
    _farm("prepare", "simulated", "--data", out / "logs", "--out", out / "prepared", "--test-from", TEST_FROM)
    for arch in ("farm", "ple"):
        _farm("train", "--data", out / "prepared", "--out", out / f"run-{arch}", "--arch", arch)
        with_json = ("--json", out / f"{arch}.json")
        _farm("evaluate", "--run", out / f"run-{arch}", "--data", out / "prepared", *with_json, quiet=True)
    _print_comparison(out)
    _farm("export", "--run", out / "run-farm", "--out", out / "artifact")
    _farm("materialize", "--data", out / "prepared", "--store", _store(out))


def _farm(*words: str | Path, quiet: bool = False) -> None:
    """Run a verb of the command line, showing it."""
    text = [str(word) for word in words]
    print("$ farm", *(_shown(word) for word in text), flush=True)
    subprocess.run([sys.executable, "-m", "farm", *text], check=True, stdout=subprocess.DEVNULL if quiet else None)


def _shown(word: str, longest: int = 100) -> str:
    return word if len(word) <= longest else word[:longest] + "..."


def _store(out: Path) -> str:
    return f"lmdb://{(out / 'store').resolve()}"


def _print_comparison(out: Path) -> None:
    """FARM next to its base model, task by task."""
    farm, ple = (json.loads((out / f"{arch}.json").read_text())["tasks"] for arch in ("farm", "ple"))
    table = Table(title=f"FARM and its base model PLE on the test day, {TEST_FROM}")
    for column in ("task", "positives", "farm\nAUC", "ple\nAUC", "diff", "farm\nGAUC", "ple\nGAUC", "diff"):
        table.add_column(column, justify="left" if column == "task" else "right")
    for task in farm:
        row = [task, f"{farm[task]['positives']:,}"]
        for figure in ("auc", "gauc"):
            a, b = farm[task][figure], ple[task][figure]
            row += ["-"] * 3 if a is None or b is None else [f"{a:.4f}", f"{b:.4f}", f"{a - b:+.4f}"]
        table.add_row(*row)
    Console().print(table)


def _serve_and_rank(out: Path, once: bool, started: float) -> int:
    """Serve the artifact, ask for one ranking, print it; then serve on, unless `once`."""
    port, admin_port = (_free_port(None if once else wanted) for wanted in (PORT, ADMIN_PORT))
    ports = ["--port", str(port), "--admin-port", str(admin_port)]
    command = ["serve", "--artifact", str(out / "artifact"), "--store", _store(out), *ports]
    print("$ farm", *command, flush=True)
    service = subprocess.Popen([sys.executable, "-m", "farm", *command])
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_ready(RankClient(url), service)
        user, candidates, now = _question(Prepared.open(out / "prepared"))
        _farm("rank", "--url", url, "--user", user, "--candidates", candidates, "--now", now, "--top-k", "10")
        print(
            f"{CANDIDATES} candidates ranked over HTTP, {time.monotonic() - started:.0f} s after the start", flush=True
        )
        if once:
            return 0
        print(f"serving at {url}, its API is described at {url}/docs; stop with Ctrl-C", flush=True)
        return service.wait()
    finally:
        service.terminate()
        service.wait()


def _free_port(wanted: int | None) -> int:
    """The wanted port when nobody listens on it, else one that is free."""
    for port in (wanted, 0):
        if port is None:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError("no free port on 127.0.0.1")


def _wait_until_ready(client: RankClient, service: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if service.poll() is not None:
            raise subprocess.CalledProcessError(service.returncode or 1, "farm serve")
        if client.ready():
            return
        time.sleep(0.1)
    raise subprocess.CalledProcessError(os.EX_UNAVAILABLE, "farm serve")


def _question(data: Prepared) -> tuple[str, str, str]:
    """The user of the last impression, 200 rooms of late, and the time just after, as `farm rank` takes them."""
    samples = data.samples
    user = data.user_ids()[samples["user_row"][-1]]
    rooms = np.unique(np.stack([samples["author_id"][-20_000:], samples["live_id"][-20_000:]]), axis=1)[:, :CANDIDATES]
    now = datetime.fromtimestamp(int(samples["request_time"][-1]) / 1000 + 1, UTC)
    return str(user), ",".join(f"{author}:{live}" for author, live in rooms.T), now.isoformat(timespec="seconds")


if __name__ == "__main__":
    sys.exit(main())
