"""Memory and CPU of processes, from Linux' /proc; and that workers share the embedding tables.

Pss of a process: its own pages, and of those that n processes map, an n-th.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from loadtest.bench.service_stores import NOW_MS, filled_store
from loadtest.bench.store_data import author_ids, user_ids
from loadtest.load.run import Load, run_load
from loadtest.load.traffic import rank_bodies
from loadtest.process import running_service
from model.figures import claim

PSS_BOUND = 1.3  # of several workers together, in parts of one

_CANDIDATES, _CLIENTS, _USERS, _AUTHORS, _BODIES = 200, 8, 2_000, 1_000_000, 4_000
_TABLE = "author_id"
_CPUS = {0, 1}
_KIB = 1024
_UTIME, _STIME = 11, 12  # in /proc/PID/stat behind the name


def pss_bytes(pids: Iterable[int]) -> int:
    """Proportional set size of these processes together."""
    return sum(_rollup(pid)["Pss"] for pid in pids)


def private_bytes(pids: Iterable[int]) -> int:
    """Pages that these processes share with nobody."""
    return sum(_rollup(pid)["Private_Dirty"] + _rollup(pid)["Private_Clean"] for pid in pids)


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU time of these processes since they started, of all their threads, in user and system mode."""
    return sum(_ticks(pid) for pid in pids) / os.sysconf("SC_CLK_TCK")


def descendants(pid: int) -> list[int]:
    """The process and all its children's children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(found for child in children for found in descendants(int(child)))]


def run_memory(workers: int = 4, table_mb: int = 500, seconds: float = 6.0) -> dict[str, Any]:
    """One worker and several over an untrained FARM with a table of `table_mb`, under rankings of random authors.

    Of each: MB of the workers and of all processes of the service; with the claim on the workers.
    """
    with tempfile.TemporaryDirectory() as scratch, filled_store("lmdb", _USERS, Path(scratch), _CPUS) as store:
        artifact = _with_large_table(Path(scratch), table_mb * 10**6)
        authors = author_ids(_AUTHORS)
        bodies = Path(scratch) / "bodies"
        rank_bodies(bodies, user_ids(_USERS), authors, [_CANDIDATES], _BODIES, 10, NOW_MS, seed=1, exponent=0)
        one, several = (_under_load(artifact, store, bodies, count, seconds) for count in (1, workers))
    ratio = several["workers_pss_mb"] / one["workers_pss_mb"]
    text = f"PSS of {workers} workers with a table of {table_mb} MB / of one"
    return {
        "services": [one, several],
        "ratio": ratio,
        "service_ratio": several["service_pss_mb"] / one["service_pss_mb"],
        "claims": [claim(text, ratio, "<", PSS_BOUND)],
    }


def _under_load(artifact: Path, store: str, bodies: Path, workers: int, seconds: float) -> dict[str, Any]:
    """MB after a load that each worker has had its share of."""
    with running_service(artifact, store, "--workers", str(workers)) as service:
        load = run_load(Load(f"{service.url}/rank", bodies, _CLIENTS, seconds))
        pids = [worker["pid"] for worker in service.workers()]
        return {
            "workers": workers,
            "requests": load.answered,
            "workers_pss_mb": pss_bytes(pids) / 1e6,
            "worker_private_mb": [private_bytes([pid]) / 1e6 for pid in pids],
            "parent_pss_mb": pss_bytes([service.process.pid]) / 1e6,
            "service_pss_mb": pss_bytes(descendants(service.process.pid)) / 1e6,
        }


def _with_large_table(folder: Path, table_bytes: int) -> Path:
    """The artifact of an untrained FARM whose authors have a table of so many bytes."""
    from feature_store.schema import default_schema
    from model.config import ModelConfig
    from model.datasets.logs import default_view
    from model.export import export_model
    from model.farm import Ranker
    from model.train import Run
    from model.train.tables import with_table_rows

    (width,) = {field.width for field in default_view().candidate if field.name == _TABLE}
    rows = table_bytes // (width * np.dtype(np.float32).itemsize)
    view = with_table_rows(default_view(), f"{_TABLE}:{rows}")
    untrained = Run({"arch": "farm"}, view, default_schema(), "untrained", {})
    return export_model(Ranker(ModelConfig(), view), untrained, folder / "artifact").path


def _rollup(pid: int) -> dict[str, int]:
    """Bytes by name."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {name: int(rest.split()[0]) * _KIB for name, _, rest in (line.partition(":") for line in lines)}


def _ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[_UTIME]) + int(fields[_STIME])
